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


@pytest.fixture
def counted(sharding):
    """Bytes inside and between nodes that the ranks counted in a step, by case and cause."""
    return json.loads((sharding / "counted.json").read_text())


def check(counted, config):
    job = plan_job(config, 4 // config.parallel.ranks_per_node, config.parallel.ranks_per_node)
    planned = by_cause(step_exchanges(job), job.topology)
    for cause in CAUSES[:-1]:
        assert counted[cause] == list(planned[cause]), cause
    assert counted["total"] == [sum(part) for part in zip(*planned.values())]
    assert counted["total"][1] > 0


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_as_planned(counted, name):
    check(counted[name], config_from_dict(configuration(name)))


@pytest.mark.parametrize("name", ["whole", "shared", "other"])
def test_bytes_of_a_run_on_prepared_data_are_as_planned(counted, sharding, name):
    check(counted[name], load_config(sharding / f"{name}.yaml"))
