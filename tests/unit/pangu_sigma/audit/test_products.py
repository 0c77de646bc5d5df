"""Products that stand once more, in graphs written by hand."""

from dataclasses import replace

import pytest

from helpers.rank_graphs import graphs
from pangu_sigma.audit.checks import recompute_faults
from pangu_sigma.audit.products import ScopedNode, flops_again
from pangu_sigma.audit.status import GraphNode

GIVEN = {"x": (6, 4), "w": (8, 4), "experts": (2, 4, 8)}
LAYER = "recompute_Default/network-Net/layer-Linear"


def node(operation, inputs, output, scope, shape):
    return ScopedNode(GraphNode(operation, tuple(inputs), (output,)), f"{scope}/{operation}-op0", shape)


FORWARD = node("MatMul", ["x", "w"], "y", LAYER, (6, 8))
LOSS = node("ReluGrad", ["y"], "dy", f"Gradients/{LAYER}", (6, 8))
TIED = node("Depend", ["x", "dy"], "again", LAYER, (6, 4))
ANEW = node("MatMul", ["again", "w"], "y2", LAYER, (6, 8))


@pytest.mark.parametrize(
    ("nodes", "flops"),
    [
        ([FORWARD, LOSS], 0),
        ([FORWARD, LOSS, TIED, ANEW], 2 * 6 * 4 * 8),
        ([FORWARD, LOSS, node("MatMul", ["dy", "w"], "dx", f"Gradients/{LAYER}", (6, 4))], 0),  # a gradient
        ([FORWARD, LOSS, node("MatMul", ["dy", "w"], "dx", f"{LAYER}/bias-AddBias", (6, 4))], 0),  # of a Cell's bprop
        (
            [FORWARD, LOSS, node("MatMul", ["dy", "w"], "dx", LAYER, (6, 4))],
            0,
        ),  # of the Cell's own bprop
        ([FORWARD, LOSS, node("MatMul", ["x", "w"], "y2", LAYER, (6, 8))], 0),  # waits for nothing: not recomputed
    ],
)
def test_products_by_hand(nodes, flops):
    assert flops_again(nodes, GIVEN) == flops


@pytest.mark.parametrize(
    ("operation", "inputs", "shape", "flops"),
    [
        ("BatchMatMul", ["rows", "experts"], (2, 3, 8), 2 * 2 * 3 * 4 * 8),
        ("GroupedMatmulV4", ["flat", "weights"], (6, 8), 2 * 6 * 4 * 8),
        ("Dense", ["x", "w", "bias"], (6, 8), 2 * 6 * 4 * 8),
        ("FlashAttentionScore", ["query", "key", "key"], (1, 2, 5, 8), 2 * 2 * (2 * 5 * 3) * 7),
        ("FlashAttentionScore", ["query rows", "key rows", "key rows"], (1, 5, 6), 2 * 2 * (2 * 5 * 3) * 7),
    ],
)
def test_products_of_other_kinds(operation, inputs, shape, flops):
    """Batched; fused, of tuples of tensors; with a bias; of 2 heads of 3 features, 5 queries by 7 keys, in both
    layouts.
    """
    given = {**GIVEN, "rows": (2, 3, 4), "one": (6, 4), "bias": (8,), "query": (1, 2, 5, 3), "key": (1, 2, 7, 3)}
    given = {**given, "query rows": (1, 5, 6), "key rows": (1, 7, 6)}
    before = [
        node("MakeTuple", ["one"], "flat", LAYER, ()),
        node("MakeTuple", ["experts"], "weights", LAYER, ()),
        node(operation, inputs, "y", LAYER, shape),
        LOSS,
    ]
    tied = node("Depend", [inputs[0], "dy"], "again", LAYER, given.get(inputs[0], ()))
    if operation == "GroupedMatmulV4":
        tied = node("MakeTuple", ["one", "dy"], "again", LAYER, ())
    anew = node(operation, ["again", *inputs[1:]], "y2", LAYER, shape)
    assert flops_again([*before, tied, anew], given) == flops


def test_more_or_less_than_planned_is_told():
    step = replace(graphs()[0].graphs[0], times=2, again=50.0)
    ranks = [replace(own, graphs=(step,)) for own in graphs()]
    assert recompute_faults(ranks, 100.0) == []
    assert recompute_faults(ranks[:1], 50.0) == [
        "rank 0: products of 1.000000e+02 FLOPs stand once more in a step's graphs, of 5.000000e+01 in its plan"
    ]
