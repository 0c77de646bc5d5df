"""The reference pages are those that the definitions make, and hold every key and metric."""

import importlib.util
from pathlib import Path

import pytest

from pangu_sigma.config.load import load_config, to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.metrics.definitions import DEFINITIONS

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_reference", REPOSITORY / "scripts" / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(page):
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").replace("\\|", "/").split("|")] for line in lines]


def flat(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_pages_are_up_to_date(script):
    stale = script.stale()
    assert not stale, f"{', '.join(stale)} no longer fit the code: run `{script.COMMAND}` and commit what it writes"


def test_every_key_with_a_default_that_the_loader_takes(script, tmp_path):
    """All rows written out as a file give the default configuration."""
    found = {row[0].strip("`"): row[2].strip("`") for row in rows(script.configuration())}
    assert set(flat(to_dict(Config()))) <= set(found)
    (tmp_path / "empty.yaml").write_text("{}")
    null = ("moe.logical_topology.", "moe.capacity.measured_share.", "moe.routers[].")  # sections that are not there
    defaults = [f"{key}={value}" for key, value in found.items() if not key.startswith(null)]
    assert load_config(tmp_path / "empty.yaml", defaults) == Config()


def test_choices_and_limits(script):
    meaning = {row[0].strip("`"): row[1] for row in rows(script.configuration())}
    assert meaning["moe.router.top_k"] == "integer >= 1"
    assert meaning["model.hidden_dropout"] == "number >= 0, <= 0.9"
    assert meaning["optimizer.clip_norm"] == "number > 0, or null"
    assert meaning["moe.capacity.mode"] == "`factor`, `critical`, `adaptive`"
    assert meaning["moe.domain_groups"] == "list of integers, or null"
    assert meaning["train.recompute"] == "`none`, `attention`, `sparse`, `all`, or integer >= 1"
    assert meaning["moe.logical_topology"] == "a section, [below](#moelogical_topology), or null"


def test_every_metric(script):
    assert {row[0].strip("`") for row in rows(script.metrics())} == set(DEFINITIONS)
