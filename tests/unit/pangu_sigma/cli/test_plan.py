"""The command: what it prints, in which shape, and that no MindSpore is needed for it."""

import json
import re
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
import yaml

from pangu_sigma.cli.main import main
from pangu_sigma.config.load import load_config
from pangu_sigma.config.validate import validate
from pangu_sigma.planner.cluster import cluster_of
from pangu_sigma.planner.plan import make_plan

ASCEND = {
    "pangu_sigma_small_8": 8,
    "pangu_sigma_2.6b_8": 8,
    "pangu_sigma_38b_64": 64,
    "pangu_sigma_38b_128": 128,
    "pangu_sigma_38b_256": 256,
    "pangu_sigma_1085b_512": 512,
}

ON_910A = "--set runtime.chip=910a --set runtime.fused={} --set runtime.hccl.unchecked_all_to_all=true".split()


@pytest.fixture
def config_file(tmp_path, make_config):
    from pangu_sigma.config.load import to_dict

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(make_config(parallel={"expert": 4}, runtime={"device": "cpu"}))))
    return str(path)


def test_shipped_configurations_are_all_tested():
    assert {path.stem for path in Path("configs/ascend").glob("*.yaml")} == set(ASCEND)


@pytest.mark.parametrize(("name", "ranks"), ASCEND.items())
def test_shipped_configurations(name, ranks, capsys):
    """They validate for the ranks in their names, and the plan counts as many without being told; 79 columns."""
    path = f"configs/ascend/{name}.yaml"
    validate(load_config(path), ranks)
    assert main(["plan", path]) == 0
    text = capsys.readouterr().out
    assert f"{ranks} ranks on {ranks // 8} node" in text
    assert max(map(len, text.splitlines())) <= 79


@pytest.mark.parametrize(("mode", "said"), [("graph", False), ("pynative", True)])
def test_predicted_times_are_of_graphs(config_file, capsys, mode, said):
    assert main(["plan", config_file, "--set", f"runtime.mode={mode}"]) == 0
    assert ("these are times of graphs" in capsys.readouterr().out) == said


@pytest.mark.parametrize(
    "path", sorted([*Path("configs").glob("*.yaml"), *Path("configs/ascend").glob("*.yaml")]), ids=str
)
def test_every_shipped_configuration_fits_what_its_header_names(path):
    """As it is, with the margin for fragmentation; and its header says why its degrees are what they are."""
    config = load_config(path, ["runtime.device=cpu"] if path.parent.name == "configs" else [])
    plan = make_plan(config, cluster_of(config, None, None, None))
    header = "".join(takewhile(lambda line: line.startswith("#"), path.open(encoding="utf-8")))
    assert plan.hardware.name.rpartition("-core ")[2] in header and "Degrees: " in header
    assert plan.fits, f"{plan.memory.total / 1e9:.1f} of {plan.capacity / 1e9:.1f} GB"
    assert plan.memory.fragmentation > 0 or plan.hardware.chip is None


def test_a_plan_as_json(config_file, capsys):
    assert main(["plan", config_file, "--nodes", "2", "--ranks-per-node", "2", "--tokens", "1e9", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["ranks"], plan["nodes"], plan["tokens"]) == (4, 2, 10**9)
    assert plan["days"] == pytest.approx(1e9 / plan["tokens_per_second"] / 86400)
    assert plan["tokens_per_second"] == pytest.approx(8 * 12 / plan["seconds"]["step"])
    for link in ("intra_node", "inter_node"):  # the list of collectives adds up to the bytes of each cause
        for cause, total in plan["bytes"].items():
            assert total[link] == sum(c[link] * c["times"] for c in plan["collectives"] if c["cause"] == cause)
    assert plan["fits"] and plan["advice"] is None and plan["bytes_exact"]
    assert plan["assumptions"]["call_us"] == 300


def test_tokens_of_the_run_without_being_told(config_file, capsys):
    assert main(["plan", config_file, "--nodes", "1", "--ranks-per-node", "4"]) == 0
    said = capsys.readouterr().out
    speed = float(re.search(r"([\d,]+) tokens/s", said)[1].replace(",", ""))
    seconds = float(re.search(r"384 tokens take ([\d.]+) seconds", said)[1])  # 4 steps of 8 rows of 12
    assert seconds == pytest.approx(384 / speed, rel=1 / speed, abs=0.006)  # both are rounded


def test_what_does_not_fit_is_said_with_a_way_out(capsys):
    rows = ["--set", "train.micro_batch_size=4"]
    assert main(["plan", "configs/ascend/pangu_sigma_38b_128.yaml", "--nodes", "16", *ON_910A, *rows]) == 0
    text = " ".join(capsys.readouterr().out.split())
    settings = "--set train.micro_batch_size=1 --set optimizer.zero=data_parallel --set train.recompute=all ("
    assert "DOES NOT FIT" in text and f"the nearest change that fits: {settings}" in text


def test_bytes_that_routing_decides_are_marked(config_file, capsys):
    assert (
        main(["plan", config_file, "--nodes", "1", "--ranks-per-node", "4", "--set", "moe.dispatch.type=ragged"]) == 0
    )
    assert "as far as known before training" in capsys.readouterr().out


def test_a_sweep(config_file, capsys):
    arguments = [
        "plan",
        config_file,
        "--nodes",
        "2",
        "--ranks-per-node",
        "2",
        "--sweep",
        "ep=2,4",
        "--sweep",
        "router=hash,switch",
    ]
    assert main(arguments) == 0
    assert "plans are on the Pareto front" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--sweep", "ep"]])
def test_no_mindspore_is_needed(arguments):
    program = (
        "import sys; sys.modules['mindspore'] = None\n"  # importing it fails
        "from pangu_sigma.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "plan", "configs/ascend/pangu_sigma_38b_64.yaml", "--nodes", "8", *arguments],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--nodes", "0"], "argument --nodes: invalid positive integer value: '0'"),
        (["--nodes", "3", "--ranks-per-node", "1"], "does not divide the number of ranks (3)"),
        (["--devices-per-node", "2"], "--devices-per-node is called --ranks-per-node now; expected that"),
        (["--devices-per-node=2"], "--devices-per-node is called --ranks-per-node now; expected that"),
        (["--tokens", "few"], "argument --tokens: invalid number, as in 329e9, value: 'few'"),
        (["--hardware", "tpu"], "hardware 'tpu': expected one of"),
        (["--cluster", "absent.yaml"], "absent.yaml: cannot be read"),
        (["--cluster", "absent.yaml", "--nodes", "2"], "expected no --nodes or --ranks-per-node with it"),
        (["--sweep", "width"], "--sweep 'width': expected one of ep, tp, dp, capacity, router"),
        (
            ["--set", "model.vocab_size=null", "--set", "data.prepare.tokenizer=given.model"],
            "model.vocab_size is null, and no such folder holds no data prepared with given.model",
        ),
        (
            ["--set", "data.prepare.sources={a: a, b: b, c: c}"],
            "null gives each domain a group of its own, but the data has 3",
        ),
        (
            ["--nodes", "4", "--ranks-per-node", "2", "--set", "model.vocab_size=25", "--set", "parallel.tensor=2"],
            "parallel.tensor (2) does not divide the 25 words",
        ),
        (["--set", "runtime.precision=fp16"], "hardware '2-core CPU' gives no peak_tflops; expected fp32"),
    ],
)
def test_bad_input_is_one_line(config_file, capsys, arguments, fragment):
    assert main(["plan", config_file, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert fragment in line
