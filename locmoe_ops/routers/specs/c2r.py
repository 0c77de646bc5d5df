"""Declaration of collaboration-constrained routing, C2R (Zhang et al., arXiv 2504.01337)."""

from dataclasses import dataclass, replace
from typing import Optional

from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.router_registry import (
    RouterSizes,
    RouterSpec,
    check_stretches,
    check_together,
    dense_gate_cost,
)
from locmoe_ops.topology import ExpertPlacement, Topology


@dataclass(frozen=True)
class C2ROptions:
    num_devices: Optional[int] = key(
        None,
        "further experts of a token are on the device of its first one: the experts of a group fall into so many equal "
        "stretches of neighbours, each of which lies on one device; null: they may be on any",
        minimum=1,
    )
    partners: Optional[int] = key(
        None,
        "T: further experts are among the so many that were chosen most often together with the first, by table; null: "
        "among all that num_devices leaves",
        minimum=1,
    )
    table: Optional[str] = key(
        None,
        "with partners: a routing trace (eval --trace) of a run with the same experts and free choice, from which is "
        "counted which experts go together; the run's checkpoints hold what follows from it",
    )
    aux_loss_weight: float = key(0.01, "weight of the load-balancing loss", minimum=0.0)


def check(options: C2ROptions, sizes: RouterSizes) -> None:
    """A first expert has enough further ones, and a table is there if and only if it is used."""
    least = sizes.top_k, f"since a token finds its {sizes.top_k} experts (moe.router.top_k) on one device"
    check_stretches("c2r.num_devices", options.num_devices, sizes, least)
    if (options.partners is None) != (options.table is None):
        given, absent = ("table", "partners") if options.partners is None else ("partners", "table")
        raise InputError(
            f"moe.router.c2r.{given} is {getattr(options, given)} with moe.router.c2r.{absent} null; expected both, or "
            "neither"
        )
    if options.partners is None:
        return
    most = sizes.per_group // (options.num_devices or 1) - 1
    if not sizes.top_k - 1 <= options.partners <= most:
        raise InputError(
            f"moe.router.c2r.partners is {options.partners}; expected {sizes.top_k - 1} (moe.router.top_k "
            f"{sizes.top_k} less the first) to {most}, the other experts of a device"
        )


def check_placement(options: C2ROptions, sizes: RouterSizes, layout: Topology, placement: ExpertPlacement) -> None:
    """Each stretch lies on one device."""
    if options.num_devices is not None:
        check_together("c2r.num_devices", options.num_devices, "device", layout, placement)


def trained(options: C2ROptions) -> C2ROptions:
    """The keys of `options` for a router whose table comes with a checkpoint's weights."""
    return replace(options, num_devices=None, partners=None, table=None)


ROUTER = RouterSpec(
    C2ROptions,
    # By quantiles, the best scores are what is chosen; here they are not.
    selection_biases=("locality_bias", "balance_rate"),
    gate_weights=True,
    localises=True,
    check=check,
    check_placement=check_placement,
    cost=dense_gate_cost,
)
