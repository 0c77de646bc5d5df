"""The router of docs/routers.md, as it stands there: its file is written out, named on the command line, and works in
every command.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

import mindspore as ms
from mindspore import Tensor

from helpers.pages import OWN, python_blocks, write_own
from locmoe_ops import router_registry, routers
from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.errors import InputError
from locmoe_ops.moe import build_moe
from locmoe_ops.router_registry import add_router_file, load_router, remove_router
from locmoe_ops.routers import specs
from pangu_sigma.bench.router import one_rank_of, routers_of
from pangu_sigma.cli.main import main
from pangu_sigma.compare.comparison import load_plan
from pangu_sigma.config.load import load_config, to_dict
from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.sparse import SparseContext, build_sparse_layer
from pangu_sigma.planner.job import plan_job
from pangu_sigma.planner.parameters import parameters
from pangu_sigma.report.step_trace import read_profile
from pangu_sigma.runtime.router_files import VARIABLE

NAME, MOST_LINES = OWN["routers.md"], 60


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The page's file in a folder of its own; the router is forgotten afterwards."""
    path = write_own("routers.md", tmp_path)
    assert len([line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]) < MOST_LINES
    monkeypatch.setenv(VARIABLE, "")
    yield path
    remove_router(NAME)


@pytest.fixture
def config(tmp_path, tiny_data):
    """A small configuration's file."""
    settings = {
        "model": {"hidden_size": 16, "num_heads": 2, "dense_layers": 0, "sparse_layers": 1, "sequence_length": 32},
        "moe": {"num_experts": 4, "num_groups": 2},
        "data": {"path": str(tiny_data)},
        "runtime": {"device": "cpu"},
        "optimizer": {"warmup_steps": 1},
        "train": {"steps": 2, "global_batch_size": 4, "eval_rows": 4},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


def use(file):
    return ["--router-file", str(file)]


def test_forward_equals_numpy(file):
    add_router_file(str(file))
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    layer = build_moe(tokens=12, hidden_size=16, ffn_hidden_size=8, num_experts=4, router=NAME, capacity_factor=4.0)
    router, generator = layer.routing.router, np.random.default_rng(0)
    x, zeros = generator.standard_normal((12, 16)).astype(np.float32), Tensor(np.zeros(12, np.int32))
    _, report = layer(Tensor(x), {"ids": zeros, "domain": zeros, "home": zeros, "seed": zeros})
    project, embeddings = (
        parameter.asnumpy().astype(np.float64) for parameter in (router.gate.project, router.gate.embeddings)
    )
    seen = x @ project.T
    cosine = seen @ embeddings.T / np.outer(np.linalg.norm(seen, axis=1), np.linalg.norm(embeddings, axis=1))
    odds = np.exp(cosine / 0.1)
    probabilities = odds / odds.sum(1, keepdims=True)
    counts = np.bincount(cosine.argmax(1), minlength=4)
    np.testing.assert_array_equal(report["expert"].asnumpy()[:, 0], cosine.argmax(1))
    expected = 0.01 * 4 * (counts / 12) @ probabilities.mean(0)
    # float32: the rows' lengths are of order 0.1, so that 1e-12 under the root is 1e-10 of their squares
    assert float(report["aux_loss"].asnumpy()) == pytest.approx(expected, rel=1e-4)


def test_the_layer_from_python_runs_as_the_page_has_it(file, capsys, monkeypatch):
    """Equal tokens want one expert."""
    monkeypatch.chdir(file.parent)
    found = {}
    exec(python_blocks("routers.md")[1], found)
    assert "CosineGate" in capsys.readouterr().out and found["y"].shape == (12, 16)
    assert len(set(found["report"]["expert"].asnumpy()[:, 0].tolist())) == 1


def test_trains_and_is_named_in_the_run(file, config, tmp_path):
    run = tmp_path / "run"
    words = [
        "--set",
        f"moe.router.type={NAME}",
        "--set",
        "moe.router.xmoe.width=3",
        "--set",
        f"train.output_dir={run}",
        "--set",
        "train.profile=[2, 2]",
    ]
    assert main(["train", config, *use(file), *words]) == 0
    assert json.loads((run / "summary.json").read_text())["router"] == NAME
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 2 and all(
        record["loss/aux"] > 0 and "moe/load_max_over_mean" in record for record in records
    )
    (split,) = read_profile(run / "profile").ranks[0]  # one rank: it computes all the time
    whole = {**dict.fromkeys(split._fields, 0.0), "compute": records[1]["time/step(s)"]}
    assert split._asdict() == pytest.approx(whole, abs=1e-6)
    assert yaml.safe_load((run / "config.yaml").read_text())["moe"]["router"][NAME] == {
        "width": 3,
        "temperature": 0.1,
        "aux_loss_weight": 0.01,
    }


def test_the_plan_knows_its_weights(file, config):
    add_router_file(str(file))
    given = load_config(config, [f"moe.router.type={NAME}"])
    job = plan_job(given, 1, 1)
    context = SparseContext(
        given, model_dims(given, 4, job.words, job.domains), create_collectives("local", job.topology, 0)
    )
    built = {
        f"blocks.0.feed_forward.{p.name}": p.shape
        for p in build_sparse_layer(context, 0).trainable_params()
        if "router" in p.name
    }
    planned = {p.name: p.shape for p in parameters(job) if "router" in p.name}
    assert planned == built and len(built) == 2
    candidates, _ = routers_of(one_rank_of(given))
    assert NAME in [candidate.name for candidate in candidates]


def test_compare_lists_its_runs_and_minds_its_file(file, config, tmp_path, capsys):
    plan = tmp_path / "variants.yaml"
    plan.write_text(
        yaml.safe_dump(
            {
                "base": config,
                "variants": {
                    "switch": {"moe.router.type": "switch"},
                    NAME: {"moe.router.type": NAME, "moe.router.xmoe.temperature": 0.2},
                },
            }
        )
    )
    assert main(["compare", str(plan), "--dry-run", "--output", str(tmp_path / "out"), *use(file)]) == 0
    assert f"all/{NAME}/seed_1 (to do)" in capsys.readouterr().out
    before = [run.settings for run in load_plan(str(plan)).runs]
    file.write_text(file.read_text() + "# changed\n")
    after = [run.settings for run in load_plan(str(plan)).runs]
    assert [one == other for one, other in zip(before, after)] == [True, False]


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--set", f"moe.router.type={NAME}s"], "did you mean xmoe?"),
        (
            ["--set", "moe.router.xmoe.widht=3"],
            "moe.router.xmoe.widht: unknown key, did you mean moe.router.xmoe.width?",
        ),
        (["--set", "moe.router.xmoe.width=0"], "moe.router.xmoe.width: found 0, expected an integer >= 1"),
        (["--set", f"moe.router.type={NAME}", "--set", "moe.capacity.mode=critical"], "has no gate weights"),
    ],
)
def test_its_keys_are_checked(file, config, capsys, words, fragment):
    assert main(["config", config, *use(file), *words]) == 2
    assert fragment in capsys.readouterr().err


def test_without_the_file_its_name_is_refused(file, config, capsys):
    assert main(["config", config, "--set", f"moe.router.type={NAME}"]) == 2
    assert "for one of your own, --router-file FILE" in capsys.readouterr().err
    add_router_file(str(file))
    assert NAME not in to_dict(load_config(config))["moe"]["router"]  # nobody else needs to know of it


def test_the_environment_may_name_it(file, config, monkeypatch):
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv(VARIABLE, f"{file.name}:")
    assert main(["config", config, "--set", f"moe.router.type={NAME}"]) == 0
    assert os.environ[VARIABLE] == str(file)  # for processes that this one starts, wherever they run


@pytest.mark.parametrize("files", [1, 2])
def test_in_the_package_no_other_file_changes(file, config, tmp_path, monkeypatch, files):
    """As one file in `specs`, or as the page says: the declaration there, Cells and `build` in `routers`."""
    code, folder = file.read_text(encoding="utf-8"), tmp_path / "package"
    (folder / "specs").mkdir(parents=True)
    if files == 1:
        (folder / "specs" / file.name).write_text(code, encoding="utf-8")
    else:
        head, declaration, cells = re.split(r"(?=^@dataclass|^class CosineGate)", code, flags=re.MULTILINE)
        light = [line for line in head.splitlines() if "mindspore" not in line and "locmoe_ops.routers" not in line]
        (folder / "specs" / file.name).write_text("\n".join([*light, declaration]), encoding="utf-8")
        (folder / file.name).write_text(head + cells, encoding="utf-8")
    monkeypatch.setattr(specs, "__path__", [*specs.__path__, str(folder / "specs")])
    monkeypatch.setattr(routers, "__path__", [*routers.__path__, str(folder)])
    router_registry._REGISTRY.__dict__.pop("shipped", None)
    try:
        assert load_config(config, [f"moe.router.type={NAME}"]).moe.router.own.width == 4
        assert load_router(NAME).__name__ == f"locmoe_ops.routers.{'specs.' * (files == 1)}{NAME}"
    finally:
        router_registry._REGISTRY.__dict__.pop("shipped", None)
        for name in (f"locmoe_ops.routers.{NAME}", f"locmoe_ops.routers.specs.{NAME}"):
            sys.modules.pop(name, None)


def test_keys_of_other_routers_need_no_mindspore(config):
    code = (
        "import sys; from pangu_sigma.cli.main import main; "
        f"words = ['config', {config!r}, '--set', 'moe.router.type=switch', '--key', 'moe.router.switch.jitter']; "
        "assert main(words) == 0; "
        "assert 'mindspore' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "0.0\n"), done.stderr


def test_a_file_is_added_once_and_under_its_own_name(file, tmp_path):
    assert add_router_file(str(file)) == add_router_file(str(file)) == NAME
    other = tmp_path / "other"
    other.mkdir()
    (other / file.name).write_text(file.read_text())
    with pytest.raises(InputError, match="there is a router xmoe already"):
        add_router_file(str(other / file.name))


@pytest.mark.parametrize(
    ("wrong", "right"), [('"gate.wrong": (width, d)', '"gate.project": (width, d)'), ("(d, width)", "(width, d)")]
)
def test_a_cost_of_other_weights_than_the_routers_is_refused(file, config, wrong, right, tmp_path, capsys):
    text = file.read_text(encoding="utf-8")
    assert text.count(right) >= 1
    head, _, rest = text.partition("weights = {")
    file.write_text(f"{head}weights = {{{rest.replace(right, wrong, 1)}", encoding="utf-8")
    words = ["--set", f"moe.router.type={NAME}", "--set", f"train.output_dir={tmp_path / 'run'}"]
    assert main(["train", config, *use(file), *words]) == 2
    told = capsys.readouterr().err
    assert "xmoe: its cost declares the weights" in told and "expected the same names and shapes" in told
