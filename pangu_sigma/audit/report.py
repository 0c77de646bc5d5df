"""What an audit found, as text of at most 79 columns and as JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import asdict
from typing import Any, Iterator, List, Sequence

from pangu_sigma.audit.checks import bytes_by_cause
from pangu_sigma.audit.graph import RankGraphs
from pangu_sigma.audit.kernels import by_cell, by_operator, launches, pass_launches
from pangu_sigma.planner.exchanges import CAUSES
from pangu_sigma.planner.job import PlannedJob
from pangu_sigma.runtime.text_table import WIDTH, TableColumn, text_table

_ON_HOST = (
    "what leaves the device are the counts of all_to_all_v, which the host reads {} times a step and rank, waiting for "
    "the device each time; "
)
_CALLS = (
    *(TableColumn(title, "<") for title in ("graph", "cause", "operation", "phase")),
    *(TableColumn(title) for title in ("ranks", "calls", "bytes put in")),
)
_BYTES = (TableColumn("bytes of a step, all ranks", "<"), TableColumn("inside nodes"), TableColumn("between nodes"))
_CELLS = (TableColumn("cell", "<", wraps=True), TableColumn("kernels"))


def report(job: PlannedJob, ranks: Sequence[RankGraphs], problems: Sequence[str], kernels: bool = False) -> str:
    """Rank 0's collectives, summed up; bytes of a step by cause and link; what is wrong.

    Args:
        job: what was audited.
        ranks: graphs of all ranks, in order.
        problems: a line each.
        kernels: whether to count them, too.
    """
    topology = job.topology
    degrees = f"expert {topology.expert}, tensor {topology.tensor}, data {topology.data}"
    graphs = ", ".join(f"{graph.times} x {graph.name}" for graph in ranks[0].graphs)
    lines = [
        f"{topology.world_size} ranks on {topology.nodes} nodes, {degrees}",
        "",
        f"rank 0, an optimizer step ({graphs})",
        *text_table(_CALLS, _rows(ranks[0])),
        "",
        *text_table(
            _BYTES,
            [
                (f"  {cause}", f"{sent.intra_node:,}", f"{sent.inter_node:,}")
                for cause, sent in bytes_by_cause(ranks, topology).items()
                if sent.total
            ],
            rule=False,
        ),
        "",
    ]
    if kernels:
        lines += [*_kernels(ranks[0]), ""]
    if problems:
        return "\n".join([*lines, f"{len(problems)} problems:", *(f"  {problem}" for problem in problems)])
    count = sum(len(graph.collectives) for own in ranks for graph in own.graphs)
    waits = sum(graph.host_waits for graph in ranks[0].graphs)
    passed = (
        f"passed: {count} collectives of {len(ranks)} ranks. All meet their peers in the same order, with the same "
        "sizes; " + (_ON_HOST.format(waits) if waits else "nothing leaves the device; ") + "they are those of "
        "pangu-sigma plan, to the byte."
    )
    return "\n".join([*lines, *textwrap.wrap(passed, WIDTH, break_on_hyphens=False)])


def _rows(own: RankGraphs) -> Iterator[List[str]]:
    calls: Counter[tuple[Any, ...]] = Counter()
    sizes: Counter[tuple[Any, ...]] = Counter()
    for graph in own.graphs:
        for found in graph.collectives:
            key = graph.name, CAUSES.index(found.cause), found.operation, found.phase, len(found.members)
            calls[key] += 1
            sizes[key] += found.elements * found.item if found.is_fixed else 0
    for key, number in calls.items():
        name, cause, operation, phase, members = key
        size = f"{sizes[key]:,}" if operation != "all_to_all_v" else "by the run"
        yield [name, CAUSES[cause], operation, phase, str(members), str(number), size]


def _kernels(own: RankGraphs) -> Iterator[str]:
    """Kernels of each graph of a rank, by Cell and by operator."""
    total = sum(graph.times * launches(graph.operators) for graph in own.graphs)
    yield f"kernels that rank {own.rank} launches, kernel by kernel: {total:,} an optimizer step"
    for graph in own.graphs:
        upkeep = launches(graph.operators) - pass_launches(graph.operators)
        yield f"  {graph.times} x {graph.name}: {launches(graph.operators):,} of {len(graph.operators):,} operators"
        yield f"    {upkeep:,} of them convert parameters or accumulate gradients"
        cells = [(cell, f"{count:,}") for cell, count in by_cell(graph.operators).items()]
        yield from text_table(_CELLS, cells, indent=4, rule=False)
        names = ", ".join(f"{name} {count}" for name, count in by_operator(graph.operators).items())
        yield from textwrap.wrap(names, WIDTH, initial_indent="    ", subsequent_indent="    ")


def as_json(
    job: PlannedJob, ranks: Sequence[RankGraphs], problems: Sequence[str], kernels: bool = False
) -> dict[str, Any]:
    """Every collective of every rank, the bytes by cause, the problems, and rank 0's kernels, if they are counted.
    `job`, `ranks`, `problems`, `kernels`: as in `report`.
    """
    counted = {
        graph.name: {
            "times": graph.times,
            "launches": launches(graph.operators),
            "pass_launches": pass_launches(graph.operators),
            "cells": by_cell(graph.operators),
            "operators": by_operator(graph.operators),
        }
        for graph in ranks[0].graphs
        if kernels
    }
    return {
        **({"kernels": counted} if kernels else {}),
        "topology": asdict(job.topology),
        "passed": not problems,
        "problems": list(problems),
        "bytes": {cause: sent._asdict() for cause, sent in bytes_by_cause(ranks, job.topology).items()},
        "ranks": [
            {
                "rank": own.rank,
                "groups": own.groups,
                "graphs": [
                    {
                        "name": graph.name,
                        "times": graph.times,
                        "host_waits": graph.host_waits,
                        "collectives": [
                            {
                                **asdict(found),
                                "bytes": found.elements * found.item if found.is_fixed else None,
                                "cause": found.cause,
                            }
                            for found in graph.collectives
                        ],
                    }
                    for graph in own.graphs
                ],
            }
            for own in ranks
        ],
    }
