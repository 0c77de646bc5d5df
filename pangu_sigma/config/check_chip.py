"""What a job asks for that its Ascend chip does not have or forbids: a configuration against the table of
`pangu_sigma.config.chips`.
"""

import os
from dataclasses import fields, replace
from typing import Iterable, Optional, Sequence, Set

from locmoe_ops.dispatch.geometry import DispatchExchange, DispatchOptions, DispatchSetup, FixedCapacities
from locmoe_ops.dispatch.registry import dispatcher_spec, names_of
from locmoe_ops.errors import InputError
from locmoe_ops.topology import ExpertPlacement, Topology
from pangu_sigma.config.ascend import resolve_runtime
from pangu_sigma.config.chips import CHIPS, all_to_all_fault, reads_status
from pangu_sigma.config.derived import has_experts, job_topology
from pangu_sigma.config.schema import Config


def with_chip(config: Config, chip: Optional[str], told_by: str) -> Config:
    """The configuration with `runtime.chip` as found; unchanged off Ascend.

    Args:
        config: of the job.
        chip: a name of `CHIPS`; None: nothing was found.
        told_by: who says so, for the message.

    Raises:
        InputError: the configuration names another chip.
    """
    named = config.runtime.chip
    if chip is None or resolve_runtime(config).runtime.device != "ascend":
        return config
    if named not in ("auto", chip):
        raise InputError(f"runtime.chip is {named}, but {told_by} is {chip}; expected the same, or auto")
    return replace(config, runtime=replace(config.runtime, chip=chip))


def check_chip(config: Config, world_size: int) -> None:
    """Checks what a job of `world_size` ranks asks of its chip; nothing where `runtime.chip` is auto, which nobody has
    resolved.

    Raises:
        InputError: the chip has no such thing; names the key, the rule and a way out.
    """
    name, runtime = config.runtime.chip, config.runtime
    if name == "auto":
        return
    chip = CHIPS[name]
    if runtime.precision not in chip.precisions.value:
        raise InputError(
            f"runtime.precision is {runtime.precision} with runtime.chip {name}, which has none; expected "
            f"{' or '.join(chip.precisions.value)}"
        )
    timeout, (low, high) = runtime.hccl.exec_timeout, chip.exec_timeout.value
    if timeout is not None and not low <= timeout <= high:
        raise InputError(
            f"runtime.hccl.exec_timeout is {timeout} with runtime.chip {name}; expected {low} to {high} seconds"
        )
    if runtime.hccl.unchecked_all_to_all and chip.cluster.value is None:
        raise InputError(
            f"runtime.hccl.unchecked_all_to_all is true with runtime.chip {name}, where HCCL's all-to-all has no rule; "
            "expected false"
        )
    for kernel in (field.name for field in fields(runtime.fused) if getattr(runtime.fused, field.name)):
        if kernel not in chip.fused.value:
            raise InputError(
                f"runtime.fused.{kernel} is true with runtime.chip {name}, which has no such kernel "
                f"({chip.fused.source}); expected false"
            )
    if config.parallel.reduce_precision != "fp32" and reads_status(name, runtime.precision, os.environ):
        raise InputError(
            f"parallel.reduce_precision is {config.parallel.reduce_precision} on a device that saturates (runtime.chip "
            f"{name}): a gradient that overflows on its way would become the largest number, and nothing would tell of "
            "it; expected fp32"
        )
    if has_experts(config):
        topology = job_topology(config, world_size)
        check_all_to_all(config, topology, all_to_all_kinds(config, topology))


def all_to_all_kinds(config: Config, topology: Topology) -> Set[str]:
    """Kinds of the groups in which the job's dispatcher exchanges parts by all-to-all, equal or not.

    Where domains have nodes of their own, training exchanges within parts of these groups, which are whole nodes.
    """
    return {one.group for one in _exchanges(config, topology) if one.operation in ("all_to_all", "all_to_all_v")}


def _exchanges(config: Config, topology: Topology) -> Sequence[DispatchExchange]:
    """What the dispatcher exchanges, for some capacity; only operations and groups mean anything."""
    moe = config.moe
    placement = ExpertPlacement(moe.num_experts, moe.num_groups, topology.expert, moe.expert_placement)
    stays = moe.capacity.local_share == 1.0 and moe.router.locality_bias.kind == "none"  # nothing leaves its node
    capacities = FixedCapacities(1, (2, 0 if stays else 1))
    options = DispatchOptions(chunks=moe.dispatch.chunks, group_wise=moe.dispatch.group_wise)
    setup = DispatchSetup(topology, placement, moe.num_experts, moe.router.top_k, capacities, options)
    spec = dispatcher_spec(moe.dispatch.type)
    return spec.exchanges(setup, spec.slots(setup))


def check_all_to_all(config: Config, topology: Topology, kinds: Iterable[str]) -> None:
    """Checks groups of these `kinds` of the `topology` against HCCL's rule on all-to-all.

    Raises:
        InputError: a group breaks it, unless `config` says to do it all the same, or another way.
    """
    name = config.runtime.chip
    if name == "auto" or config.parallel.all_to_all == "gathered" or config.runtime.hccl.unchecked_all_to_all:
        return
    for kind in sorted(kinds):
        for ranks in topology.groups(kind):
            fault = all_to_all_fault(name, ranks, topology.ranks_per_node)
            if fault is not None:
                shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
                raise InputError(
                    f"parallel.expert {topology.expert}, parallel.tensor {topology.tensor} and "
                    f"moe.dispatch.type {config.moe.dispatch.type} exchange tokens among ranks {shown} on runtime.chip "
                    f"{name}, where HCCL's all-to-all does not do so: {fault}; expected other degrees, or "
                    "parallel.all_to_all: gathered, or runtime.hccl.unchecked_all_to_all: true if your CANN can"
                )


def check_gathered(config: Config, topology: Topology) -> None:
    """Checks `parallel.all_to_all` against the rest of the configuration, on any device.

    Raises:
        InputError: it is gathered where nothing is exchanged, or not in equal parts.
    """
    if config.parallel.all_to_all != "gathered":
        return
    expected = "expected native"
    if config.runtime.hccl.unchecked_all_to_all:
        raise InputError(
            "runtime.hccl.unchecked_all_to_all is true with parallel.all_to_all gathered, which makes no all-to-all; "
            "expected false"
        )
    if topology.expert == 1 or not has_experts(config):
        why = "no layer has experts" if topology.expert > 1 else "parallel.expert is 1: tokens go nowhere"
        raise InputError(f"parallel.all_to_all is gathered, but {why}; {expected}")
    if any(one.operation == "all_to_all_v" for one in _exchanges(config, topology)):
        raise InputError(
            f"parallel.all_to_all is gathered with moe.dispatch.type {config.moe.dispatch.type}, whose parts have no "
            f"common size; {expected}, or {' or '.join(names_of(lambda one: one.has_slots))}"
        )
