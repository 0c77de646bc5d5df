"""The status register of a device that saturates, in exported graphs: cleared before the first product, read after the
last (see `pangu_sigma.train.overflow`).

Before and after are a matter of dependencies: a graph holds no other order.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple, Sequence

CLEAR, READ = "NPUClearFloatStatusV2", "NPUGetFloatStatusV2"
PRODUCTS: tuple[str, ...] = ("MatMul", "BatchMatMul", "MatMulExt", "BatchMatMulExt", "GroupedMatmulV4", "GroupedMatmul")
PRODUCTS += ("Dense", "FlashAttentionScore", "FlashAttentionScoreGrad")


class GraphNode(NamedTuple):
    """An operator of a graph: its kind, and names of what it reads and makes."""

    operation: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def status_faults(nodes: Sequence[GraphNode], wanted: bool) -> list[str]:
    """What is wrong with the register in a graph, a line each.

    Args:
        nodes: of the graph.
        wanted: whether the job asks the register. A graph with products then clears it once, and all products come
            after that; and reads it once, and all products come before. Other graphs leave it alone.
    """
    products = {place for place, node in enumerate(nodes) if node.operation in PRODUCTS}
    found = {kind: [i for i, node in enumerate(nodes) if node.operation == kind] for kind in (CLEAR, READ)}
    expected = 1 if wanted and products else 0
    faults = [f"{len(places)} {kind}, expected {expected}" for kind, places in found.items() if len(places) != expected]
    if faults or not expected:
        return faults
    maker = {name: place for place, node in enumerate(nodes) for name in node.outputs}
    sources = [{maker[name] for name in node.inputs if name in maker} for node in nodes]
    users: dict[int, set[int]] = defaultdict(set)
    for place, before in enumerate(sources):
        for source in before:
            users[source].add(place)
    (clear,), (read,) = found[CLEAR], found[READ]
    early = len(products - _reached(clear, [users[place] for place in range(len(nodes))]))
    late = len(products - _reached(read, sources))
    if early:
        faults.append(f"{early} of {len(products)} products do not wait for {CLEAR}")
    if late:
        faults.append(f"{READ} does not wait for {late} of {len(products)} products")
    return faults


def _reached(start: int, steps: Sequence[set[int]]) -> set[int]:
    """All places that lead from `start`, where `steps` of each says which are next."""
    seen, waiting = {start}, [start]
    while waiting:
        following = steps[waiting.pop()] - seen
        seen |= following
        waiting.extend(following)
    return seen
