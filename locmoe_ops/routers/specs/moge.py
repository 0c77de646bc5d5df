"""Declaration of Pangu Pro MoE's mixture of grouped experts (arXiv 2505.21411)."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Optional

from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterSizes, RouterSpec
from locmoe_ops.routers.specs.topk import TopKOptions, check_weights, cost, count_owners
from locmoe_ops.topology import ExpertPlacement, Topology, devices_of_experts


@dataclass(frozen=True)
class MoGEOptions(TopKOptions):
    device_groups: Optional[int] = key(
        None,
        "equal parts of neighbouring experts, from each of which a token takes as many (Pangu Pro: 8 of 8 experts "
        "each, one from each); null: one for each device that holds experts of the token's group",
        minimum=1,
    )


def check_placement(options: MoGEOptions, sizes: RouterSizes, layout: Topology, placement: ExpertPlacement) -> None:
    """Raises InputError where device groups do not divide experts or choices."""
    device_blocks(options, sizes, placement)


def pin(options: MoGEOptions, sizes: RouterSizes, layout: Topology, placement: ExpertPlacement) -> MoGEOptions:
    """See `RouterSpec.pin`."""
    return replace(options, device_groups=device_blocks(options, sizes, placement))


def device_blocks(options: MoGEOptions, sizes: RouterSizes, placement: ExpertPlacement) -> int:
    """The number of device groups. Raises InputError where it does not divide a group's experts, or top_k.

    Args:
        options: of the router. sizes: of the model. placement: who holds which expert.
    """
    blocks = count_owners("moge", "device_groups", options.device_groups, devices_of_experts(placement))
    if sizes.top_k % blocks:
        raise InputError(
            f"moe.router.top_k ({sizes.top_k}) with moe.router.type moge: a token takes as many experts from "
            f"each of {blocks} device groups; expected a multiple of {blocks}, or another moe.router.moge.device_groups"
        )
    return blocks


ROUTER = RouterSpec(
    MoGEOptions,
    selection_biases=("locality_bias", "balance_rate"),
    gate_weights=True,
    check=partial(check_weights, "moge"),
    check_placement=check_placement,
    pin=pin,
    cost=cost,
)
