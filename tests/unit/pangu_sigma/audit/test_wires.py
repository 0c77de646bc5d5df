"""What is found too wide, or on the wrong communicator, in graphs that are lists written by hand."""

from dataclasses import replace

import pytest

from helpers.rank_graphs import WORLD, collective
from pangu_sigma.audit.graph import ExportedGraph, RankGraphs
from pangu_sigma.audit.wires import WireTypes, queued_behind_gradients, wide_wires

HALF, ALL_HALF, SINGLE = WireTypes(2, 4), WireTypes(2, 2), WireTypes(4, 4)
LARGE = (4, 8192)  # 128 KB of float32


def ranks_of(*found):
    return [RankGraphs(rank, (ExportedGraph("micro_batch", 2, found, ()),), {"world": WORLD}) for rank in range(2)]


def carrying(tag, shape=LARGE, dtype="float32", operation="all_to_all", group="world"):
    item = {"float32": 4, "int32": 4, "float16": 2, "bfloat16": 2}[dtype]
    return replace(collective(operation, group, WORLD, shape, tag, dtype=dtype), item=item)


@pytest.mark.parametrize(
    "found, types, wide",
    [
        (carrying("all_to_all/layer 0/dispatch"), HALF, True),
        (carrying("all_to_all/layer 0/dispatch"), SINGLE, False),
        (carrying("all_to_all/layer 0/dispatch", dtype="float16"), HALF, False),
        (carrying("all_to_all/layer 0/dispatch", dtype="bfloat16"), HALF, False),
        (carrying("all_to_all/layer 0/dispatch", (4, 4096)), HALF, False),  # 64 KB
        (carrying("all_to_all/layer 0/dispatch", (4, 4097)), HALF, True),
        (carrying("all_to_all/layer 0/counts", dtype="int32"), HALF, False),
        (carrying("all_to_all/layer 0/dispatch", (-1, 16), operation="all_to_all_v"), HALF, True),  # as many as come
        # Of a gather the result is larger than what is put in, of a scatter what is put in.
        (carrying("tensor/x", (16384 + 4,), operation="all_gather"), HALF, True),
        (carrying("tensor/x", (4096 + 1,), operation="reduce_scatter"), HALF, True),
        (carrying("tensor/attention 2/gradient", operation="all_reduce"), HALF, True),
        (carrying("layer 0/statistics", operation="all_reduce"), HALF, False),
        (carrying("layer 0/statistics of domains", operation="all_reduce"), HALF, False),
        (carrying("tensor/cross-entropy", operation="all_gather"), HALF, False),
        (carrying("gradient/dense/0", operation="all_reduce"), HALF, False),
        (carrying("gradient/dense/0", operation="all_reduce"), ALL_HALF, True),
        (carrying("gradient/overlap 0", operation="all_reduce"), ALL_HALF, True),
        (carrying("gradient/dense/0/dp_node", dtype="float16"), ALL_HALF, False),
        (carrying("gradient/statistics", operation="all_reduce"), ALL_HALF, False),
        (carrying("gradient/dense/updated/0/dp_node", operation="all_gather"), ALL_HALF, False),
    ],
)
def test_numbers_wider_than_they_need_be(found, types, wide):
    lines = wide_wires(ranks_of(found), types)
    assert len(lines) == wide  # one line for both ranks
    if wide:
        assert f"'{found.tag}'" in lines[0] and "float32, expected at most 2 bytes a number" in lines[0]


def test_the_limit_is_of_bytes():
    found = ranks_of(carrying("all_to_all/x", (4, 16)))
    assert wide_wires(found, HALF) == []
    assert len(wide_wires(found, HALF, limit=4 * 16 * 4 - 1)) == 1


@pytest.mark.parametrize(
    "tag, group, queued",
    [
        ("all_to_all/layer 0/dispatch", "world", True),
        ("layer 0/statistics", "world", True),
        ("all_to_all/layer 0/dispatch", "ep", False),
        ("gradient/norm", "world", False),  # of the update, which waits for gradients anyway
    ],
)
def test_exchanges_of_layers_do_not_queue_behind_gradients(tag, group, queued):
    early = carrying("gradient/overlap 0/rail", operation="all_reduce")
    lines = queued_behind_gradients(ranks_of(early, carrying(tag, group=group)))
    assert len(lines) == queued
    if queued:
        assert f"'{tag}' waits for 'gradient/overlap 0/rail' in group world" in lines[0]


def test_gradients_after_the_backward_pass_share_what_they_like():
    late = carrying("gradient/dense/0", operation="all_reduce")
    assert queued_behind_gradients(ranks_of(late, carrying("all_to_all/layer 0/dispatch"))) == []
