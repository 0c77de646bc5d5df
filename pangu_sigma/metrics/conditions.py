"""What a run must be like for a metric to occur in it: conditions on its configuration and its ranks, never on values.

`pangu_sigma.metrics.definitions` declares each metric with one of them. A metric whose condition does not hold would be
one number in all steps (0 bytes between the nodes of a run on one node), and is left out of every file.
"""

from dataclasses import dataclass, fields
from typing import Callable, NamedTuple, Tuple

from locmoe_ops.dispatch.registry import dispatchers
from locmoe_ops.router_registry import registered
from locmoe_ops.topology import Topology
from pangu_sigma.config.derived import has_experts, layer_routers
from pangu_sigma.config.schema import Config, RouterConfig

LOCALITY_WEIGHT = "locality_loss_weight"  # of a router's section; every other key that ends so is of `loss/aux`
LOSS_WEIGHT = "loss_weight"


@dataclass(frozen=True)
class RunFacts:
    """What conditions are decided by.

    Attributes:
        config: of the run.
        topology: its ranks.
        layout: the cluster that locality refers to: `moe.logical_topology`, or else that of `topology`.
        on_device: whether its ranks have Ascend devices.
        counts_traffic: whether the backend sees bytes and times of its exchanges.
    """

    config: Config
    topology: Topology
    layout: Topology
    on_device: bool = False
    counts_traffic: bool = True


class Condition(NamedTuple):
    """Attributes: text (as in "every step, TEXT"; empty: without a condition); holds (whether a run fulfils it)."""

    text: str
    holds: Callable[[RunFacts], bool]


def all_of(*conditions: Condition) -> Condition:
    """Holds where all `conditions` do."""
    text = ", ".join(condition.text for condition in conditions)
    return Condition(text, lambda facts: all(condition.holds(facts) for condition in conditions))


ALWAYS = Condition("", lambda facts: True)

# ---- devices and precision

ON_DEVICE = Condition("on Ascend", lambda facts: facts.on_device)
KNOWN_PEAK = Condition(
    "on Ascend, where the chip has a hardware file with the peak of runtime.precision", lambda facts: facts.on_device
)
FP16 = Condition("precision fp16", lambda facts: facts.config.runtime.precision == "fp16")

# ---- experts, routers, capacity

EXPERTS = Condition("with experts", lambda facts: has_experts(facts.config))


def _leaves_home(facts: RunFacts) -> bool:
    """Whether the ranks that share out a layer's experts are on several nodes; else every token is at home."""
    layout = facts.layout
    return any(len({layout.node_of(rank) for rank in group}) > 1 for group in layout.groups("ep"))


HOME_NODES = all_of(
    EXPERTS, Condition("a layer's experts on several nodes (of moe.logical_topology, where it is given)", _leaves_home)
)


SEVERAL_NODES = all_of(
    HOME_NODES, Condition("moe.router.top_k above 1", lambda facts: facts.config.moe.router.top_k > 1)
)


def _sends_copies(facts: RunFacts) -> bool:
    """Whether a layer's experts are on several nodes of the job, and it is known which assignments leave theirs: homes
    of another layout do not tell.
    """
    topology, moe = facts.topology, facts.config.moe
    counts = dispatchers()[moe.dispatch.type].spec.counts_copies
    nodes = [{topology.node_of(rank) for rank in group} for group in topology.groups("ep")]
    return any(len(own) > 1 for own in nodes) and (counts or moe.logical_topology is None)


COPIES = all_of(
    EXPERTS,
    Condition(
        "a layer's experts on several nodes (of the job; without moe.logical_topology or with dispatcher node_dedup)",
        _sends_copies,
    ),
)


def _drops(facts: RunFacts) -> bool:
    return dispatchers()[facts.config.moe.dispatch.type].spec.has_slots


def in_a_layer(holds: Callable[[RouterConfig], bool]) -> Callable[[RunFacts], bool]:
    """Whether the router of some sparse layer `holds`."""
    return lambda facts: any(holds(router) for router in layer_routers(facts.config))


def _has_aux_loss(router: RouterConfig) -> bool:
    """A router of the user's may have any loss."""
    weights = [one.name for one in fields(router.own) if one.name.endswith(LOSS_WEIGHT) and one.name != LOCALITY_WEIGHT]
    return registered(router.type).external or any(getattr(router.own, name) > 0.0 for name in weights)


def _has_locality_loss(router: RouterConfig) -> bool:
    weights = (getattr(router.own, LOCALITY_WEIGHT, 0.0), router.locality_loss.initial_weight or 0.0)
    return registered(router.type).external or max(weights) > 0.0


def leaves_undecided(router: RouterConfig) -> bool:
    """LocMoE's ReLU does, where there is one; a router of the user's says so itself."""
    return registered(router.type).spec.counts_undecided and getattr(router.own, "rectify", True)


SLOTS = all_of(EXPERTS, Condition("a dispatcher with slots (not ragged)", _drops))
AUX_LOSS = all_of(EXPERTS, Condition("a router with such a loss of a weight above 0", in_a_layer(_has_aux_loss)))
LOCALITY_LOSS = all_of(
    EXPERTS, Condition("a router with a locality loss of a weight mu above 0", in_a_layer(_has_locality_loss))
)
UNDECIDED = all_of(EXPERTS, Condition("router locmoe with rectify, or replay", in_a_layer(leaves_undecided)))
MIXED = all_of(EXPERTS, Condition("moe.routers", lambda facts: bool(facts.config.moe.routers)))
LOCAL_TERM = all_of(
    EXPERTS, Condition("a local term", lambda facts: facts.config.moe.router.locality_bias.kind != "none")
)
TERM_OFF = all_of(
    LOCAL_TERM,
    Condition("unless moe.evaluation_rules is none", lambda facts: facts.config.moe.evaluation_rules != "none"),
)
LOCALITY_SCHEDULE = all_of(
    EXPERTS,
    Condition(
        "moe.router.locality_loss.initial_weight",
        lambda facts: facts.config.moe.router.locality_loss.initial_weight is not None,
    ),
)
CONTEXT = all_of(
    EXPERTS,
    Condition(
        "moe.router.locmoe.context_weight above 0",
        in_a_layer(lambda router: getattr(router.own, "context_weight", 0.0) > 0.0),
    ),
)
EXPERT_CHOICE = all_of(
    EXPERTS,
    Condition(
        "moe.router.etr.expert_choice_start_step",
        in_a_layer(lambda router: getattr(router.own, "expert_choice_start_step", None) is not None),
    ),
)
BOUND = all_of(
    EXPERTS,
    Condition(
        "moe.capacity.mode critical or adaptive",
        lambda facts: facts.config.moe.capacity.mode in ("critical", "adaptive"),
    ),
)
MEASURED_SHARE = all_of(
    EXPERTS,
    Condition(
        "moe.capacity.measured_share, unless nothing can leave its node",
        lambda facts: facts.config.moe.capacity.measured_share is not None,
    ),
)

# ---- what travels

COUNTED = Condition("several ranks, backend tcp", lambda facts: facts.counts_traffic and facts.topology.world_size > 1)


def _groups_of(cause: str, config: Config) -> Tuple[str, ...]:
    """Kinds of the groups in which tensors of a cause are exchanged."""
    if cause == "tensor":
        return ("tp",)
    if cause == "gradient":
        return ("world",)
    if not has_experts(config):
        return ()
    if dispatchers()[config.moe.dispatch.type].external:
        return ("world",)  # it may exchange in any
    return ("ep", "tp") if config.moe.dispatch.group_wise else ("ep",)


def _meets(facts: RunFacts, cause: str, intra_node: bool, inter_node: bool) -> bool:
    """Whether ranks of one node, or of different nodes, are together in a group of the `cause`."""
    topology = facts.topology
    groups = [group for kind in _groups_of(cause, facts.config) for group in topology.groups(kind)]
    nodes = [[topology.node_of(rank) for rank in group] for group in groups]
    inside, between = any(len(set(own)) < len(own) for own in nodes), any(len(set(own)) > 1 for own in nodes)
    return COUNTED.holds(facts) and (intra_node and inside or inter_node and between)


def exchanged(cause: str) -> Condition:
    """Something of the `cause`, one of `definitions.CAUSES`, travels at all."""
    reason = {
        "all_to_all": "experts of a layer on several ranks",
        "gradient": "several ranks",
        "tensor": "parallel.tensor above 1",
    }
    return Condition(f"{reason[cause]}, backend tcp", lambda facts: _meets(facts, cause, True, True))


def exchanged_inside(cause: str) -> Condition:
    """Something of the `cause` travels inside nodes."""
    text = f"{exchanged(cause).text}, with several of these ranks a node"
    return Condition(text, lambda facts: _meets(facts, cause, True, False))


def exchanged_between(cause: str) -> Condition:
    """Something of the `cause` travels between nodes."""
    text = f"{exchanged(cause).text}, with these ranks on several nodes"
    return Condition(text, lambda facts: _meets(facts, cause, False, True))


def _overlaps_tokens(facts: RunFacts) -> bool:
    dispatch = facts.config.moe.dispatch
    return dispatch.chunks > 1 or dispatchers()[dispatch.type].external


TOKENS_OVERLAP = all_of(exchanged("all_to_all"), Condition("moe.dispatch.chunks above 1", _overlaps_tokens))
GRADIENTS_OVERLAP = all_of(
    exchanged("gradient"),
    Condition(
        "parallel.overlap_gradients", lambda facts: facts.config.parallel.overlap_gradients and facts.topology.data > 1
    ),
)
INSIDE_NODES = Condition(
    "several ranks a node, backend tcp",
    lambda facts: COUNTED.holds(facts) and facts.topology.ranks_per_node > 1,
)
BETWEEN_NODES = Condition("several nodes, backend tcp", lambda facts: COUNTED.holds(facts) and facts.topology.nodes > 1)
