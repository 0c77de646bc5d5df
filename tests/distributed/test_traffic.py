"""Bytes that `pangu-sigma plan` predicts, against what four ranks that play two nodes, or four, count while they
train.
"""

import json

import pytest

from helpers.traffic import CASES, configuration
from pangu_sigma.config.load import config_from_dict, load_config
from pangu_sigma.planner.exchanges import CAUSES, step_exchanges
from pangu_sigma.planner.job import plan_job
from pangu_sigma.planner.traffic import by_cause

RUNS = [(name, 2, 2) for name in ("straight", "2x2", "flat", "shared")] + [
    ("early", 2, 1),
    ("late", 2, 1),
]


def check(counted, config, nodes, ranks_per_node):
    job = plan_job(config, nodes, ranks_per_node)
    planned = by_cause(step_exchanges(job), job.topology)
    for cause in CAUSES[:-1]:
        assert counted[cause] == list(planned[cause]), cause
    assert counted["total"] == [sum(part) for part in zip(*planned.values())]
    assert counted["total"][1] > 0


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_as_planned(layouts, name):
    config = config_from_dict(configuration(name))
    per_node = config.parallel.ranks_per_node
    check(json.loads((layouts / "counted_4.json").read_text())[name], config, 4 // per_node, per_node)


@pytest.mark.parametrize(("name", "nodes", "ranks_per_node"), RUNS)
def test_bytes_of_a_run_on_prepared_data_are_as_planned(layouts, name, nodes, ranks_per_node):
    counted = json.loads((layouts / f"counted_{nodes * ranks_per_node}.json").read_text())
    check(counted[name], load_config(layouts / f"{name}.yaml"), nodes, ranks_per_node)
