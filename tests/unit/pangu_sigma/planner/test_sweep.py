"""Sweeps: which values are tried, and what the Pareto front is."""

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.planner.cluster import cluster_of
from pangu_sigma.planner.sweep import parse_axes, sweep, sweep_json, table


@pytest.fixture
def config(make_config):
    return make_config(parallel={"expert": 2}, runtime={"device": "cpu"})


@pytest.fixture
def cluster(config):
    return cluster_of(config, 2, 4, "cpu")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["ep=2,4", "router=hash,switch"], {"ep": [2, 4], "router": ["hash", "switch"]}),
        (["router", "ep"], {"ep": [1, 2, 4, 8], "router": ["hash", "switch", "locmoe"]}),  # in the order of the table
        (["tp"], {"tp": [1, 2, 4]}),  # devices of a node, heads
        (["dp"], {"dp": [4, 8, 16, 32]}),  # half as many replicas as there are, as many, twice, four times
        (["capacity=1,1.5"], {"capacity": [1.0, 1.5]}),
    ],
)
def test_axes(config, cluster, texts, expected):
    assert list(parse_axes(texts, config, cluster).items()) == list(expected.items())


@pytest.mark.parametrize(
    ("texts", "fragment"),
    [
        (["pp=2"], "--sweep 'pp=2': expected one of ep, tp, dp, capacity, router"),
        (["ep=2", "ep=4"], "ep is given twice"),
        (["ep=two"], "found 'two', expected a number above 0"),
        (["tp="], "found '', expected a number"),
        (["dp=0"], "found '0'"),
        (["capacity=nan"], "found 'nan'"),
        (["ep=2.5"], "found '2.5'"),
        (["router=hash,best"], "found 'best', expected some of c2r, etr, faster_moe"),
    ],
)
def test_wrong_axes_are_refused(config, cluster, texts, fragment):
    with pytest.raises(InputError) as error:
        parse_axes(texts, config, cluster)
    assert fragment in str(error.value)


def test_impossible_combinations_are_counted_and_told(config, cluster):
    found = sweep(config, cluster, {"ep": [2, 3, 16], "tp": [1, 4]})
    assert len(found.points) == 2 and found.impossible == 4  # 3 divides no 8 experts; 16 x 1 is more than 8 ranks
    with pytest.raises(InputError, match="none of 1 combinations is possible; the first: parallel.expert"):
        sweep(config, cluster, {"ep": [3]})


def test_the_front_is_what_nothing_beats(config, cluster):
    """By comparing all pairs, router by router: seconds, ranks, memory; slots, of which more are better."""
    found = sweep_json(
        sweep(
            config,
            cluster,
            {"ep": [1, 2, 4, 8], "tp": [1, 2], "dp": [4, 8], "capacity": [1.0, 2.0], "router": ["hash", "switch"]},
        )
    )
    costs = [(p["seconds"], p["data"] * p["tensor"], p["memory"], -p["capacity_factor"]) for p in found]

    def beaten(one):
        return any(
            p["router"] == found[one]["router"]
            and costs[i] != costs[one]
            and all(a <= b for a, b in zip(costs[i], costs[one]))
            for i, p in enumerate(found)
        )

    assert all(p["fits"] for p in found)
    assert [p["best"] for p in found] == [not beaten(i) for i in range(len(found))]
    assert 0 < sum(p["best"] for p in found) < len(found)
    assert [p["seconds"] for p in found] == sorted(p["seconds"] for p in found)


def test_routers_bring_the_keys_that_they_ask_for(config, cluster):
    found = sweep(config, cluster, {"router": ["hash", "switch", "locmoe", "gshard", "faster_moe", "ta_moe", "etr"]})
    assert len(found.points) == 7 and found.impossible == 0


def test_the_table_fits_a_terminal(config, cluster):
    lines = table(sweep(config, cluster, {"ep": [2, 4], "router": ["faster_moe", "hash"]})).splitlines()
    assert max(map(len, lines)) <= 79
    assert lines[0].split()[:6] == ["router", "ep", "tp", "dp", "nodes", "capac."]
