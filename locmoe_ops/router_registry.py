"""Which routers there are: the package's, and those of the files that a user names.

A router has a declaration, `ROUTER`, with what configurations, validation and the planner must know of it; and a
function `build(context)`, which makes the Cell (`locmoe_ops.routers.base`).

Who reads a configuration needs the declarations, and no MindSpore. So those of the package's routers have files of
their own, `locmoe_ops/routers/specs/NAME.py`, which import none; `build` and the Cells stand in
`locmoe_ops/routers/NAME.py`, which is imported when such a router is built. A user's router is one file with both,
imported whole when it is added.
"""

import dataclasses
import difflib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Callable, Dict, Mapping, Optional, Tuple, Type

from locmoe_ops.declared import Declared, Registry
from locmoe_ops.errors import InputError
from locmoe_ops.routers import specs
from locmoe_ops.topology import ExpertPlacement, Topology, devices_of_experts, nodes_of_experts

# Biases on selection that keys of `moe.router` ask for: a local term; a bias that is moved by loads (`balance_rate`,
# and `balance.kind` sign and pid); one that is moved by quantiles (`balance.kind` quantile).
SELECTION_BIASES = ("locality_bias", "balance_rate", "quantile_balance")
# Rules by which `moe.router.balance` moves biases, and the bias that each needs.
BALANCE_BIASES = {"none": None, "sign": "balance_rate", "quantile": "quantile_balance", "pid": "balance_rate"}
BALANCE_KINDS = tuple(BALANCE_BIASES)
_OTHER_KEYS = (
    "type",
    "top_k",
    "statistics",
    "locality_loss",
    "balance",
    "layers",
    *SELECTION_BIASES,
)  # of `moe.router` and of entries of `moe.routers`: no names for routers


@dataclass(frozen=True)
class RouterSizes:
    """What a declaration is told of the model: d, E, G and k; M and S where they are known; and whether the outputs of
    experts are scaled by weights.
    """

    hidden_size: int
    num_experts: int
    num_groups: int = 1
    top_k: int = 1
    sparse_layers: Optional[int] = None
    sequence_length: Optional[int] = None
    scale_by_gate: bool = True

    @property
    def per_group(self) -> int:
        """n: experts that compete for a token."""
        return self.num_experts // self.num_groups


@dataclass(frozen=True)
class RouterCost:
    """What a router costs each sparse layer, for the planner.

    Attributes:
        weights: shapes of its trainable tensors, by their names inside the router.
        products: multiply-adds a token in the forward pass.
        statistics: the sets of tokens over which it sums counts and probabilities (`RoutingStatistics`): `none`;
            `asked`, those of `moe.router.statistics`; `node`, the same but never all tokens.
        sums_values: whether its `Router.sums_values` is set: it then sums its gate values over a step's tokens.
        sums_domains: whether it sums probabilities by domain (`DomainStatistics`), over the sets of
            `moe.router.statistics`.
        sums_losses: whether it sums a number over all tokens for its `Router.token_losses`.
    """

    weights: Mapping[str, Tuple[int, ...]] = field(default_factory=dict)
    products: int = 0
    statistics: str = "none"
    sums_values: bool = False
    sums_domains: bool = False
    sums_losses: bool = False


@dataclass(frozen=True)
class NoOptions:
    """For a router without keys of its own."""


def nothing_to_check(options: Any, sizes: RouterSizes) -> None:
    """The check of a router that goes with all sizes and all values of its keys."""


def fits_any_placement(options: Any, sizes: RouterSizes, layout: Topology, placement: ExpertPlacement) -> None:
    """The check of a router for which it is of no account who holds which expert."""


def nothing_to_pin(options: Any, sizes: RouterSizes, layout: Topology, placement: ExpertPlacement) -> Any:
    """The keys of a router of which none follows from who holds which expert."""
    return options


def no_cost(options: Any, sizes: RouterSizes) -> RouterCost:
    """The cost of a router without weights and losses."""
    return RouterCost()


def dense_gate_cost(options: Any, sizes: RouterSizes) -> RouterCost:
    """The cost of a `DenseGate`, and of a loss over the tokens asked for."""
    weights = {"gate.weight": (sizes.num_experts, sizes.hidden_size)}
    return RouterCost(weights, sizes.num_experts * sizes.hidden_size, "asked")


def check_blocks(what: str, sizes: RouterSizes) -> None:
    """Raises InputError where grouped average pooling finds no equal blocks of features; `what` averages them."""
    if sizes.hidden_size % sizes.per_group:
        raise InputError(
            f"moe.router.{what} averages equal blocks of features: the {sizes.per_group} experts of a group "
            f"(moe.num_experts {sizes.num_experts} / moe.num_groups {sizes.num_groups}) do not divide "
            f"model.hidden_size ({sizes.hidden_size})"
        )


def check_stretches(
    key: str, count: Optional[int], sizes: RouterSizes, least: Tuple[int, str] = (1, "an expert in each")
) -> None:
    """Raises InputError where a group's experts do not fall into equal stretches of neighbours, large enough.

    Args:
        key: that says how many stretches there are. count: its value; None: the group is whole.
        sizes: of the model. least: experts that a stretch needs, and why.
    """
    if count is not None and sizes.per_group % count:
        raise InputError(
            f"moe.router.{key} ({count}) does not divide the {sizes.per_group} experts of a group (moe.num_experts "
            f"{sizes.num_experts} / moe.num_groups {sizes.num_groups}); expected a divisor"
        )
    size = sizes.per_group // (count or 1)
    if size < least[0]:
        raise InputError(
            f"moe.router.{key} is {count}, which leaves {size} of the {sizes.per_group} experts of a group in each; "
            f"expected at least {least[0]}, {least[1]}"
        )


def check_together(key: str, count: int, unit: str, layout: Topology, placement: ExpertPlacement) -> None:
    """Raises InputError where the experts of one of `count` equal stretches of a group are not together.

    Args:
        key: of `moe.router` that says how many stretches there are. count: its value, a divisor of a group's experts.
        unit: `node` or `device`, on one of which they should be. layout, placement: who holds which expert.
    """
    places = nodes_of_experts(layout, placement) if unit == "node" else devices_of_experts(placement)  # (G, n)
    for group, row in enumerate(places):
        for index, stretch in enumerate(row.reshape(count, -1)):
            spread, first = len(set(stretch.tolist())), index * len(stretch)
            if spread > 1:
                raise InputError(
                    f"moe.router.{key} is {count}, but experts {first} to {first + len(stretch) - 1} of group {group} "
                    f"are on {spread} {unit}s; expected {len(set(row.tolist()))} (or a moe.logical_topology in which "
                    "they are together, to go on with a router that was trained so)"
                )


def no_map(options: Any) -> Optional[str]:
    """The map of a router whose routes follow from more than token ids."""
    return None


@dataclass(frozen=True)
class RouterSpec:
    """What the program must know of a router besides how to build it.

    The defaults suit a router that follows a rule of its own.

    Attributes:
        options: frozen dataclass of the keys in the router's section, each a `locmoe_ops.keys.key`.
        selection_rule: ends "which ...", where a selection bias is refused.
        top_k: the only number of experts a token that it picks; None: any.
        selection_biases: those of `SELECTION_BIASES` that it takes.
        second_experts: whether it offers second experts, to which overflow is re-picked.
        gate_weights: whether it is a `GatedRouter` with a row of weights an expert, with which cosines are measured.
        counts_undecided: whether its `Router.counts_undecided` is set: it then tells for each token whether its rule
            left it undecided.
        expert_choice: whether experts choose among the tokens that want their slots: then drop priority is `weight`,
            and there are slots.
        whole_rows: whether it must be given whole rows of text, so that there is no cached decoding with it.
        localises: whether it seeks to keep tokens on their nodes.
        map_of_ids: of its keys, the kind of its maps (`locmoe_ops.routers.hash_maps.KINDS`, or `file`) from token ids
            to experts, if its routes follow from these alone; such a router has `Router.expert_by_id`.
        check: raises InputError where its keys, and the model's sizes, do not fit together.
        check_placement: the same, told the cluster that homes refer to, and the experts' places in it.
        pin: its keys with a number in place of what follows from the experts' places, so that the router picks the same
            experts in another cluster. Where a model is evaluated or extracted, its cluster becomes one rank.
        cost: for the planner.
    """

    options: Type[Any] = NoOptions
    selection_rule: str = "picks by a rule of its own"
    top_k: Optional[int] = None
    selection_biases: Tuple[str, ...] = ()
    second_experts: bool = False
    gate_weights: bool = False
    counts_undecided: bool = False
    expert_choice: bool = False
    whole_rows: bool = False
    localises: bool = False
    map_of_ids: Callable[[Any], Optional[str]] = no_map
    check: Callable[[Any, RouterSizes], None] = nothing_to_check
    check_placement: Callable[[Any, RouterSizes, Topology, ExpertPlacement], None] = fits_any_placement
    pin: Callable[[Any, RouterSizes, Topology, ExpertPlacement], Any] = nothing_to_pin
    cost: Callable[[Any, RouterSizes], RouterCost] = no_cost


RegisteredRouter = Declared[RouterSpec]


def routers() -> Dict[str, RegisteredRouter]:
    """All routers by name: the package's, then those of `add_router_file`."""
    return _REGISTRY.all()


def registered(name: str) -> RegisteredRouter:
    """Raises InputError, with the nearest name, where there is no router `name`."""
    known = routers()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    raise InputError(
        f"router: found '{name}', expected one of {', '.join(known)}{f' (did you mean {near[0]}?)' if near else ''}"
    )


def router_spec(name: str) -> RouterSpec:
    """What is declared of the router `name`. Raises InputError where there is none."""
    return registered(name).spec


def load_router(name: str) -> ModuleType:
    """The module with the `build` of the router `name`, which imports MindSpore.

    It is the file that declares the router; where that has no `build`, the package's `routers/NAME.py`.

    Raises InputError: there is no such router, or nothing builds it.
    """
    return _REGISTRY.load(registered(name))


def add_router_file(path: str) -> str:
    """Adds the router of the file `path` outside the package, and returns its name: see `Registry.add_file`."""
    return _REGISTRY.add_file(path)


def remove_router(name: str) -> None:
    """Forgets the router `name`, which `add_router_file` added."""
    _REGISTRY.remove(name)


def _declaration(module: ModuleType) -> RouterSpec:
    """The module's `ROUTER`. Raises InputError where it is not what it should be."""
    origin, spec = module.__file__, getattr(module, "ROUTER", None)
    if spec is None:
        raise InputError(f"{origin}: it declares no router; expected ROUTER = RouterSpec(...), see docs/routers.md")
    if not isinstance(spec, RouterSpec):
        raise InputError(f"{origin}: ROUTER is a {type(spec).__name__}, expected a RouterSpec")
    options: Any = spec.options
    is_class = isinstance(options, type) and dataclasses.is_dataclass(options)
    if not (is_class and options.__dataclass_params__.frozen):
        raise InputError(f"{origin}: ROUTER's options are {options}, expected a frozen dataclass")
    for one in dataclasses.fields(options):
        if "help" not in one.metadata:
            raise InputError(
                f'{origin}: {options.__name__}.{one.name} says nothing of itself, expected key(default, "its meaning")'
            )
    for bias in spec.selection_biases:
        if bias not in SELECTION_BIASES:
            raise InputError(
                f"{origin}: ROUTER's selection_biases hold {bias!r}, expected some of {', '.join(SELECTION_BIASES)}"
            )
    return spec


_REGISTRY: Registry[RouterSpec] = Registry("router", "build(context)", specs, _declaration, _OTHER_KEYS)
