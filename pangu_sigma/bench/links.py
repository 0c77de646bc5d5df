"""The groups of a job and its links, tried by the ranks themselves: who receives what was sent, and how fast."""

import time
from statistics import median
from typing import Any, List, Optional, Sequence

import numpy as np

from mindspore import Tensor, nn

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.collectives.rank_numbers import group_fault
from locmoe_ops.topology import GROUP_KINDS, Topology
from pangu_sigma.config.chips import all_to_all_fault
from pangu_sigma.doctor.findings import Finding, failure, ok, unknown, warning
from pangu_sigma.planner.hardware import Hardware, Link

ROUNDS, WARM_UP = 5, 2
DEVICE_MB, CPU_MB = 64, 1  # that a rank sends in all
SLOW = 0.5  # of what the hardware file says
GIGA, MEGA = 1e9, 1_000_000


def groups_to_try(topology: Topology) -> List[str]:
    """Kinds of all groups with several ranks that a job of this `topology` may make, without those that are one before
    by another name.
    """
    kinds: List[str] = []
    for kind in GROUP_KINDS:
        several = any(len(ranks) > 1 for ranks in topology.groups(kind))
        if several and all(topology.groups(kind) != topology.groups(other) for other in kinds):
            kinds.append(kind)
    return kinds


def operation_in(topology: Topology, kind: str, chip: Optional[str]) -> str:
    """all_to_all, or all_gather where HCCL's documentation has no all-to-all in groups of this `kind` on the `chip`."""
    ruled_out = chip is not None and any(
        all_to_all_fault(chip, ranks, topology.ranks_per_node) for ranks in topology.groups(kind)
    )
    return "all_gather" if ruled_out else "all_to_all"


def check_groups(collectives: Collectives, chip: Optional[str]) -> Finding:
    """Every group exchanges rank numbers. Every rank must call it.

    Args:
        collectives: of this rank.
        chip: of its device; None: none, or not known.
    """
    kinds = groups_to_try(collectives.topology)
    if not kinds:
        return unknown("groups", "one rank has no peers", "start it by pangu-sigma launch --bench self-test")
    faults = [group_fault(collectives, kind, operation_in(collectives.topology, kind, chip)) for kind in kinds]
    wrong = [fault for fault in faults if fault]
    if wrong:
        fix = "see docs/ascend.md on all-to-all and the network; nothing can be trained over this"
        return failure("groups", f"{len(wrong)} of {len(kinds)} groups: {wrong[0]}", fix)
    return ok("groups", f"rank numbers arrive in all kinds of groups: {', '.join(kinds)}")


class _Exchange(nn.Cell):
    """One exchange as a graph of its own."""

    def __init__(self, exchange: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.exchange = exchange

    def construct(self, x: Any) -> Any:
        return self.exchange(x)


def check_links(collectives: Collectives, chip: Optional[str], hardware: Optional[Hardware]) -> List[Finding]:
    """The rate of each kind of link, versus the hardware file. Every rank must call it.

    Args:
        collectives, chip: as in `check_groups`.
        hardware: what is written of the links; None: nothing.
    """
    topology = collectives.topology
    places = (
        ("node link", "node", None if hardware is None else hardware.node),
        ("network", "rail", None if hardware is None else hardware.network),
    )
    findings = []
    for subject, kind, link in places:
        ranks = topology.group_of(kind, collectives.rank)
        if len(ranks) == 1:
            reason = "one rank a node" if kind == "node" else "one node"
            findings.append(unknown(subject, f"the job has {reason}"))
            continue
        rate = _measure(collectives, kind, operation_in(topology, kind, chip), CPU_MB if chip is None else DEVICE_MB)
        shared = topology.ranks_per_node if kind == "rail" and hardware and hardware.network_per_node else 1
        findings.append(rate_finding(subject, rate, link, shared, ranks))
    return findings


def _measure(collectives: Collectives, kind: str, operation: str, megabytes: int) -> float:
    """Bytes a second that this rank sends in its group of a `kind`: the median of some rounds."""
    size = len(collectives.topology.group_of(kind, collectives.rank))
    numbers = megabytes * MEGA // 4 // (size - 1)  # for each peer
    cell = _Exchange(getattr(collectives, operation)(kind, f"self-test/{operation} {kind}"))
    x = Tensor(np.zeros((size if operation == "all_to_all" else 1, numbers), np.float32))
    spent = []
    for _ in range(WARM_UP + ROUNDS):
        collectives.barrier()
        started = time.perf_counter()
        cell(x)[0, 0].asnumpy()
        spent.append(time.perf_counter() - started)
    return 4.0 * numbers * (size - 1) / median(spent[WARM_UP:])


def rate_finding(subject: str, rate: float, link: Optional[Link], shared: int, ranks: Sequence[int]) -> Finding:
    """What a measured rate means.

    Args:
        subject: the kind of link. rate: bytes a second of one rank. ranks: that exchanged.
        link: what the hardware file says of it; None: no file is known.
        shared: ranks that share the link.
    """
    found = f"{rate / GIGA:.2f} GB/s a rank among {len(ranks)} ranks"
    if link is None:
        return unknown(subject, f"{found}, with no hardware file to compare with")
    written = link.bandwidth_gb_s.value / shared
    what = "assumed" if link.bandwidth_gb_s.assumption else "written"
    found += f", {what} in the hardware file {written:.3g} GB/s"
    if rate < SLOW * written * GIGA:
        return warning(subject, found, "look at the network (hccn_tool, HCCL_BUFFSIZE), or correct the file for plan")
    return ok(subject, found)
