"""The audit's text and JSON of graphs written by hand."""

import re
from dataclasses import replace

import pytest

from helpers.jobs import make_config, make_job
from helpers.rank_graphs import graphs
from pangu_sigma.audit.kernels import GraphOperator
from pangu_sigma.audit.report import as_json, report

__all__ = ["make_config", "make_job"]


@pytest.fixture
def job(make_job):
    return make_job(2, 2, parallel={"expert": 4})


def test_text_by_hand(job):
    lines = report(job, graphs(), []).splitlines()
    assert lines[:3] == [
        "4 ranks on 2 nodes, expert 4, tensor 1, data 4",
        "",
        "rank 0, an optimizer step (1 x step)",
    ]
    assert [line.split() for line in lines[5:8]] == [
        ["step", "all_to_all", "all_to_all", "forward", "4", "1", "192"],
        ["step", "gradient", "reduce_scatter", "forward", "2", "1", "40"],
        ["step", "gradient", "all_reduce", "forward", "2", "1", "20"],
    ]
    assert [line.split() for line in lines[9:12]] == [
        ["bytes", "of", "a", "step,", "all", "ranks", "inside", "nodes", "between", "nodes"],
        ["all_to_all", "192", "384"],
        ["gradient", "80", "80"],
    ]
    assert lines[13].startswith("passed: 12 collectives of 4 ranks.") and max(map(len, lines)) <= 79


def test_kernels_of_cells_with_long_names_fit_the_terminal(job):
    """Two operators of a Cell whose name is longer than a line: it continues below, and its count stands beside it."""
    where = "objective/network/" + "/".join(["a_cell_of_a_name_that_nobody_would_like_to_type"] * 4)
    operators = (GraphOperator("MatMul", where), GraphOperator("Add" * 40, where))
    ranks = [replace(rank, graphs=(replace(rank.graphs[0], operators=operators),)) for rank in graphs()]
    lines = report(job, ranks, [], kernels=True).splitlines()
    cell = next(line for line in lines if "a_cell" in line)
    assert cell.split()[-1] == "2" and all(len(line) <= 79 for line in lines if "Add" not in line)
    assert re.sub(r"\s", "", "".join(lines)).count("a_cell_of_a_name_that_nobody_would_like_to_type") <= 4


def test_counts_that_the_host_reads_are_counted(job):
    """Two calls in a graph that a step runs three times; where there is none, nothing leaves the device."""
    assert "nothing leaves the device" in " ".join(report(job, graphs(), []).split())
    whole = graphs()[0].graphs[0]
    uneven = replace(whole.collectives[0], operation="all_to_all_v", shape=(-1,))
    step = replace(whole, collectives=(uneven, uneven), times=3)
    found = " ".join(report(job, [replace(rank, graphs=(step,)) for rank in graphs()], []).split())
    assert "the host reads 6 times a step and rank" in found and "nothing leaves" not in found
    assert as_json(job, [replace(graphs()[0], graphs=(step,))], [])["ranks"][0]["graphs"][0]["host_waits"] == 6


def test_problems_are_listed(job):
    assert report(job, graphs(), ["one", "another"]).endswith("2 problems:\n  one\n  another")


def test_json_has_every_collective_with_its_bytes(job):
    ranks = graphs()
    dynamic = replace(ranks[0].graphs[0].collectives[0], operation="all_to_all_v", shape=(-1, 3))
    step = replace(ranks[0].graphs[0], collectives=(dynamic, *ranks[0].graphs[0].collectives[1:]))
    ranks[0] = replace(ranks[0], graphs=(step,))
    found = as_json(job, ranks, ["one"])
    assert (found["passed"], found["problems"], found["topology"]["world_size"]) == (False, ["one"], 4)
    sizes = [[each["bytes"] for each in rank["graphs"][0]["collectives"]] for rank in found["ranks"]]
    assert sizes == [[None, 40, 20]] + [[192, 40, 20]] * 3
    first = found["ranks"][1]["graphs"][0]["collectives"][0]
    assert (first["cause"], first["members"], first["tag"]) == (
        "all_to_all",
        (0, 1, 2, 3),
        "all_to_all/layer 0/dispatch",
    )
