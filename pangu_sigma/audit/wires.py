"""How wide numbers are on their way between ranks: no wider than the matmuls', where the bytes matter; and on which
communicators they go: gradients, which are summed while layers are computed, not on those of the layers.

What is apart: sums of statistics, whose counts a half would round; the three numbers a token of the split
cross-entropy; and updated weights, which are state. Gradients have a key of their own (`parallel.reduce_precision`).
"""

from __future__ import annotations

import math
from itertools import chain
from typing import NamedTuple, Sequence

from pangu_sigma.audit.graph import Collective, RankGraphs

LIMIT = 64 * 1024  # bytes of a call, below which its latency counts and not its width
FLOAT32 = 4
_FLOATS = ("float32", "float16", "bfloat16")
EARLY = "gradient/overlap "  # how the tags of gradients begin that are summed during the backward pass
_APART = ("/statistics", "/cross-entropy", "/updated/")  # of tags


class WireTypes(NamedTuple):
    """Bytes of a number: of what takes part in matmuls, and of gradients on their way to their sum."""

    compute: int
    gradients: int


def wide_wires(ranks: Sequence[RankGraphs], types: WireTypes, limit: int = LIMIT) -> list[str]:
    """Calls whose numbers are wider than they need be, a line each; of those alike on several ranks the first.

    Args:
        ranks: of the whole job, in order.
        types: how wide numbers may be.
        limit: bytes that a rank puts into a call, or gets from it, up to which any width will do.
    """
    lines: dict[str, None] = {}
    for graph in chain.from_iterable(own.graphs for own in ranks):
        for found in graph.collectives:
            widest = types.gradients if found.cause == "gradient" else types.compute  # bytes that a number may have
            if any(part in found.tag for part in _APART):
                widest = FLOAT32
            if found.dtype in _FLOATS and found.item > widest and _bytes(found) > limit:
                line = (
                    f"graph {graph.name}: {found.operation} '{found.tag}' ({found.phase}, in {found.where}) carries "
                    f"{_bytes(found):,} bytes of {found.dtype}, expected at most {widest} bytes a number"
                )
                lines[line] = None
    return list(lines)


def _bytes(found: Collective) -> float:
    """Of the larger of input and result; without limit where only the run knows."""
    if not found.is_fixed:
        return math.inf
    return max(found.elements, math.prod(found.shape)) * found.item


def queued_behind_gradients(ranks: Sequence[RankGraphs]) -> list[str]:
    """Exchanges of layers on a communicator that sums gradients during the backward pass too, on whose stream they
    would wait for these; a line each, of those alike on several ranks the first. `ranks`: of the whole job, in order.
    """
    found: dict[str, None] = {}
    for own in ranks:
        for graph in own.graphs:
            early = {one.group: one for one in graph.collectives if one.tag.startswith(EARLY)}
            for one in graph.collectives:
                if one.cause != "gradient" and one.group in early:
                    found[
                        f"graph {graph.name}: {one.operation} '{one.tag}' waits for '{early[one.group].tag}' in group "
                        f"{one.group}, which both use"
                    ] = None
    return list(found)
