"""The commands of the README and of docs/commands.md run as they stand there, in a folder as the quickstart leaves one.

The configurations are those that come with the program, made small. Of the quickstart's runs only those that later
commands look at are made, on one rank; the script itself is tested in tests/unit/scripts/test_environment.py. Jobs of
several ranks that tests/distributed starts itself are shown here to be understood, by a dry run; others have two ranks.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from helpers.merged import merged
from pangu_sigma.cli import main as cli

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [(REPOSITORY / name).read_text(encoding="utf-8") for name in ("README.md", "docs/commands.md")]
SMALL = {
    "configs/quickstart.yaml": {
        "model": {"hidden_size": 32, "num_heads": 2, "dense_layers": 0, "sparse_layers": 1, "sequence_length": 32},
        "data": {"prepare": {"vocab_size": 400, "validation_fraction": 0.1}},
        "optimizer": {"warmup_steps": 2},
        "train": {"steps": 24, "eval_rows": 12},
        "checkpoint": {"interval": 12},
    },
    "configs/two_domains.yaml": {
        "model": {"hidden_size": 32, "num_heads": 2, "dense_layers": 0, "sparse_layers": 1, "sequence_length": 32},
        "data": {"prepare": {"vocab_size": 400}},
        "parallel": {"expert": 2, "ranks_per_node": 1},
    },
    "configs/compare/smoke.yaml": {
        "base_overrides": {
            "model.hidden_size": 32,
            "train.steps": 3,
            "train.eval_interval": 3,
            "train.eval_rows": 12,
            "optimizer.warmup_steps": 2,  # as above: the graphs of the same ranks are taken
        },
        "variants": None,
        "warmup_steps_ignored": 1,
    },
}
# Everything else is tried elsewhere: the tests themselves, which are running; words that stand for something.
NOT_RUN = re.compile(r"^source |^bash scripts/(test|quickstart)\.sh|\b[A-Z]{4,}\b(?![=.])")
ALONE = "--set parallel.expert=1 --set parallel.ranks_per_node=1"
ON_TWO = "--ranks-per-node 2 configs/quickstart.yaml --set parallel.expert=2 --set parallel.ranks_per_node=1"
INSTEAD = {
    "launch --ranks-per-node 4 configs/quickstart.yaml": f"launch {ON_TWO}",  # as the comparison's ranks
    # test_bench.py and test_simulated_cluster.py start such jobs
    "launch --bench": "launch --dry-run --bench",
    "simulate_cluster.sh": "simulate_cluster.sh --dry-run",
}


def commands():
    specification = importlib.util.spec_from_file_location("check_docs", REPOSITORY / "scripts" / "check_docs.py")
    check_docs = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(check_docs)
    found = [line for page in PAGES for kind, line in check_docs.steps(page) if kind == "run"]
    return list(dict.fromkeys(re.sub(r"\s+", " ", re.sub(r"\s+#\s.*", "", line)).strip() for line in found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a user begins: configurations and launchers, as `config --copy` gives them, and texts."""
    folder = tmp_path_factory.mktemp("user")
    assert cli.main(["config", "--copy", str(folder)]) == 0
    for name, changes in SMALL.items():
        content = merged(yaml.safe_load((folder / name).read_text(encoding="utf-8")), changes)
        if "variants" in content:  # one is enough to see the command work
            content.update(variants={"switch": {"moe.router.type": "switch"}})
        (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    generator = np.random.default_rng(0)
    words = np.array(["".join(generator.choice(list("abcdefghij"), 4)) for _ in range(120)])
    for domain in ("en", "zh", "code"):
        (folder / "data" / "samples" / domain).mkdir(parents=True)
        for number in range(12):
            (folder / "data" / "samples" / domain / f"{number}.txt").write_text(" ".join(generator.choice(words, 400)))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """Runs a command in that folder, as a user whose shell has this environment active; its exit status and both
    outputs.
    """
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MS_", "LOCMOE_", "RANK_", "PYTEST"))
    }
    environment = {
        **kept,
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }

    def _run(command):
        return subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
        )

    return _run


@pytest.fixture(scope="module")
def after_quickstart(run):
    """The quickstart's data, and its runs with hash and LocMoE, on one rank, which takes less time."""
    for command in (
        "pangu-sigma prepare configs/quickstart.yaml",
        f"pangu-sigma train configs/quickstart.yaml {ALONE} --set moe.router.type=locmoe "
        "--set train.output_dir=runs/quickstart/locmoe --set checkpoint.resume=auto",
        f"pangu-sigma train configs/quickstart.yaml {ALONE} --set moe.router.type=hash "
        "--set train.output_dir=runs/quickstart/hash --set train.steps=3",
    ):
        done = run(command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


RUN = [command for command in commands() if not NOT_RUN.search(command)]


def test_nearly_all_commands_are_run():
    assert len(RUN) >= 16
    assert [command for command in commands() if command not in RUN] == [
        "bash scripts/quickstart.sh",
        "bash scripts/test.sh",
        "source .venv/bin/activate",
        "pangu-sigma ckpt inherit CONFIG runs/dense runs/start",
    ]


@pytest.mark.parametrize("command", RUN)
@pytest.mark.usefixtures("after_quickstart")
def test_command(run, command):
    for written, smaller in INSTEAD.items():
        command = command.replace(written, smaller)
    done = run(command)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.usefixtures("after_quickstart")
def test_a_run_is_refused_where_one_is_and_leaves_nothing(run, folder):
    """One line, and no log folder of a job that did not run."""
    before = sorted(str(path) for path in (folder / "runs" / "quickstart").rglob("*"))
    done = run("bash scripts/train_msrun.sh --ranks-per-node 2 configs/quickstart.yaml --set parallel.expert=2")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "holds an earlier run" in line
    assert sorted(str(path) for path in (folder / "runs" / "quickstart").rglob("*")) == before
