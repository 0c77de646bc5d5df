"""What must hold of the graphs of all ranks together."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Iterator, Sequence

from locmoe_ops.collectives.registry import link_bytes
from locmoe_ops.topology import Topology
from pangu_sigma.audit.graph import Collective, ExportedGraph, RankGraphs
from pangu_sigma.planner.exchanges import CAUSES, Exchange
from pangu_sigma.planner.traffic import NOTHING, Sent

SHOWN = 5  # differences of one kind that are listed


def check(ranks: Sequence[RankGraphs], planned: Sequence[Exchange], topology: Topology) -> list[str]:
    """Everything that is wrong, a line each.

    Args:
        ranks: of the whole job, in order.
        planned: the collectives of a step (`pangu_sigma.planner.exchanges.step_exchanges`).
        topology: of the job.
    """
    problems = [
        f"rank {own.rank}, graph {graph.name}: {fault}"
        for own in ranks
        for graph in own.graphs
        for fault in graph.faults
    ]
    problems += groups_disagree(ranks)
    names = {tuple((graph.name, graph.times) for graph in own.graphs) for own in ranks}
    if len(names) > 1:
        return [*problems, f"ranks have different graphs: {', '.join(map(str, sorted(names)))}"]
    stuck = [line for graphs in zip(*(own.graphs for own in ranks)) for line in run_in_step(graphs)]
    return [*problems, *stuck, *(line for own in ranks for line in _differences_from_plan(own, planned, topology))]


def groups_disagree(ranks: Sequence[RankGraphs]) -> list[str]:
    """Process groups must have the same members everywhere, and any two ranks must make those they share in the same
    order.
    """
    problems = []
    for first in ranks:
        for second in ranks[first.rank + 1 :]:
            one, other = (
                [item for item in own.groups.items() if {first.rank, second.rank} <= set(item[1])]
                for own in (first, second)
            )
            if one != other:
                problems.append(
                    f"ranks {first.rank} and {second.rank} make process groups differently: {_names(one)} against "
                    f"{_names(other)}"
                )
    return problems[:SHOWN]


def _names(groups: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(name for name, _ in groups) or "none"


def run_in_step(graphs: Sequence[ExportedGraph]) -> list[str]:
    """Runs the exchanges of one graph of every rank, each waiting for its peers. Returns why it does not come to an
    end, if so. `graphs`: that of each rank, in order.

    Every rank stands at its next collective, which ends when all members of its group stand at one that fits: same
    group, operation, tag, phase, size and type.
    """
    name, place = graphs[0].name, [0] * len(graphs)

    def standing(rank: int) -> Collective | None:
        own = graphs[rank].collectives
        return own[place[rank]] if place[rank] < len(own) else None

    waiting = set(range(len(graphs)))
    while waiting:
        rank = waiting.pop()
        mine = standing(rank)
        if mine is None:
            continue
        theirs = {member: standing(member) for member in mine.members}
        if any(other is None or other.members != mine.members for other in theirs.values()):
            continue  # a peer is elsewhere; when it comes here, it asks again for all
        for member, other in theirs.items():
            if other is not None and _what_must_agree(other) != _what_must_agree(mine):
                return [
                    f"graph {name}: rank {rank} runs {mine} (in {mine.where}) where rank {member} runs {other} "
                    f"(in {other.where})"
                ]
        for member in mine.members:
            place[member] += 1
        waiting.update(mine.members)
    stuck = []
    for rank, found in ((rank, standing(rank)) for rank in range(len(graphs))):
        if found is not None:
            others = [(peer, standing(peer)) for peer in found.members if peer != rank]
            peers = [f"{peer}: in {at.operation} '{at.tag}'" if at else f"{peer}: at the end" for peer, at in others]
            stuck.append(
                f"graph {name}: rank {rank} waits for ever in {found} (in {found.where}); its peers are "
                + ", ".join(peers)
            )
    return stuck[:SHOWN]


def _what_must_agree(found: Collective) -> tuple[object, ...]:
    return found.group, found.operation, found.tag, found.phase, found.shape, found.dtype


_Key = tuple[str, str, tuple[int, ...], "int | None"]  # cause, operation, members, bytes


def _differences_from_plan(own: RankGraphs, planned: Sequence[Exchange], topology: Topology) -> Iterator[str]:
    """A rank's collectives must be those of the plan: cause, operation, members, bytes (where the graph knows them),
    number.
    """
    in_graph: Counter[_Key] = Counter()
    for graph in own.graphs:
        for found in graph.collectives:
            in_graph[_key(found.cause, found.operation, found.members, found.elements * found.item)] += graph.times
    in_plan: Counter[_Key] = Counter()
    for exchange in planned:
        members = topology.group_of(exchange.group, own.rank)
        in_plan[_key(exchange.cause, exchange.operation, members, exchange.elements * exchange.item)] += exchange.times
    differences = [(key, in_graph[key], in_plan[key]) for key in in_graph | in_plan if in_graph[key] != in_plan[key]]
    for (cause, operation, members, size), here, there in differences[:SHOWN]:
        yield (
            f"rank {own.rank}: {operation} of {size} bytes among ranks {members} for {cause}: "
            f"{here} in a step's graphs, {there} in its plan"
        )
    if len(differences) > SHOWN:
        yield f"rank {own.rank}: {len(differences) - SHOWN} more differences from the plan"


def _key(cause: str, operation: str, members: tuple[int, ...], size: int) -> _Key:
    return cause, operation, members, None if operation == "all_to_all_v" else size


def recompute_faults(ranks: Sequence[RankGraphs], planned: float) -> list[str]:
    """Where a step's graphs compute more or less once more than the plan has, a line a rank.

    Args:
        ranks: of the job, in order.
        planned: FLOPs of a rank's step (`pangu_sigma.planner.predict.recomputed_flops`).
    """
    faults = []
    for own in ranks:
        found = sum(graph.times * graph.again for graph in own.graphs)
        if not math.isclose(found, planned, rel_tol=1e-6):  # sums of whole numbers, in double precision
            faults.append(
                f"rank {own.rank}: products of {found:.6e} FLOPs stand once more in a step's graphs, of "
                f"{planned:.6e} in its plan"
            )
    return faults[:SHOWN]


def bytes_by_cause(ranks: Sequence[RankGraphs], topology: Topology) -> dict[str, Sent]:
    """Bytes of a step over all `ranks`, from their graphs. What only the run knows is left out."""
    totals = {cause: NOTHING for cause in CAUSES}
    calls: dict[tuple[int, ...], list[tuple[int, Collective]]] = defaultdict(list)
    for own in ranks:
        for graph in own.graphs:
            for found in graph.collectives:
                if found.members[0] == own.rank and found.is_fixed:  # once for each group
                    calls[found.members].append((graph.times, found))
    for members, of_group in calls.items():
        nodes = [topology.node_of(rank) for rank in members]
        near = [sum(node == other for other in nodes) - 1 for node in nodes]
        for times, found in of_group:
            parts = link_bytes(found.operation, found.elements, found.item, len(members))
            inside = sum(int(part) * count for part, count in zip(parts, near))
            outside = sum(int(part) * (len(members) - 1 - count) for part, count in zip(parts, near))
            totals[found.cause] += Sent(times * inside, times * outside)
    return totals
