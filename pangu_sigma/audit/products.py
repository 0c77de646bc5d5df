"""Products that an exported graph computes twice, since `train.recompute` asks for it.

A product stands once more where its Cell holds two of the same shapes, one that waits for no gradient, the forward
pass's, and one that does. One of other shapes is a gradient, of a Cell that writes its own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, Mapping, NamedTuple, Sequence

from pangu_sigma.audit.status import GraphNode

BACKWARD = "Gradients/"  # how the scopes of operators begin that MindSpore has derived


class ScopedNode(NamedTuple):
    """An operator of a graph, the scope that it lies in (Cell by Cell, its own name last), and its result's shape."""

    node: GraphNode
    scope: str
    shape: tuple[int, ...]


def flops_again(nodes: Sequence[ScopedNode], given: Mapping[str, tuple[int, ...]]) -> float:
    """FLOPs of the products that stand once more.

    Args:
        nodes: of the graph, each after those that it reads.
        given: shapes of the graph's inputs and parameters, by name.
    """
    shapes = {**given, **{name: one.shape for one in nodes for name in one.node.outputs}}
    maker = {name: one.node for one in nodes for name in one.node.outputs}
    late: set[str] = set()  # results that wait for a gradient
    # Of each Cell's products of some shapes, those outside of derived gradients: whether they wait, and their FLOPs.
    flops: dict[Any, list[tuple[bool, float]]] = defaultdict(list)
    for one in nodes:
        waits = one.scope.startswith(BACKWARD) or not late.isdisjoint(one.node.inputs)
        if waits:
            late.update(one.node.outputs)
        if one.node.operation in _COSTS and not one.scope.startswith(BACKWARD):
            read = [shapes.get(_first(name, maker), ()) for name in one.node.inputs]
            alike = (one.scope.rpartition("/")[0], one.node.operation, one.shape, *read[:2])
            flops[alike].append((waits, _COSTS[one.node.operation](one.shape, read)))
    found = 0.0
    for of_product in flops.values():
        if not all(waits for waits, _ in of_product):
            found += sum(cost for waits, cost in of_product if waits)
    return found


def _first(name: str, maker: Mapping[str, GraphNode]) -> str:
    """The first tensor of a tuple that is put together in the graph; else the name itself."""
    while name in maker and maker[name].operation in ("MakeTuple", "MakeList") and maker[name].inputs:
        name = maker[name].inputs[0]
    return name


def _matmul(out: tuple[int, ...], read: Sequence[tuple[int, ...]]) -> float:
    """Whichever operand is transposed: of b products [m, k] x [k, n] the sizes multiply to (b k) (b m n) k."""
    batch = math.prod(out[:-2])
    return 2.0 * math.sqrt(math.prod(out) * math.prod(read[0]) * math.prod(read[1]) / batch)


def _grouped(out: tuple[int, ...], read: Sequence[tuple[int, ...]]) -> float:
    return 2.0 * math.prod(out) * read[0][-1]


def _flash_attention(out: tuple[int, ...], read: Sequence[tuple[int, ...]]) -> float:
    """Scores and mixing, of queries [B, H, S, D] and keys [B, H, L, D], or [B, S, H * D] and [B, L, H * D]."""
    return 2.0 * 2.0 * math.prod(read[0]) * read[1][-2]


_COSTS: dict[str, Any] = {
    "MatMul": _matmul,
    "BatchMatMul": _matmul,
    "Dense": _matmul,  # of its inputs the first two
    "GroupedMatmulV4": _grouped,
    "GroupedMatmul": _grouped,
    "FlashAttentionScore": _flash_attention,
}
