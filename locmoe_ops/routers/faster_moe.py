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

Shape legend: T tokens of this rank, k choices, n experts of a group, W ranks of the layout, S sets.
"""

from typing import Tuple, Union

from mindspore import Parameter, Tensor, dtype, ops

from locmoe_ops.errors import InputError
from locmoe_ops.functions import sortable_bits
from locmoe_ops.routers.base import Router, RouterContext, RouterTokens, one_hot
from locmoe_ops.routers.selection_bias import LocalExperts
from locmoe_ops.routers.specs.faster_moe import FasterMoEOptions
from locmoe_ops.routers.specs.switch import SwitchOptions
from locmoe_ops.routers.switch import SwitchRouter

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
        context: of the router. options: its keys; a max_remote_fraction outside [0, 1] raises InputError.
    """

    def __init__(self, context: RouterContext, options: FasterMoEOptions) -> None:
        super().__init__(context, SwitchOptions(options.aux_loss_weight))
        if not 0.0 <= options.max_remote_fraction <= 1.0:
            raise InputError(f"max_remote_fraction is {options.max_remote_fraction}, expected 0 to 1")
        self.max_remote_fraction: Union[float, Parameter] = options.max_remote_fraction
        self.trained_fraction = options.max_remote_fraction
        if context.rules_change:  # without another graph
            self.max_remote_fraction = Parameter(
                Tensor(options.max_remote_fraction, dtype.float32), name="max_remote_fraction", requires_grad=False
            )
        self.homes = context.layout.world_size
        self.local_experts = LocalExperts(context.shape, context.layout, context.placement)

    def set_locality_rules(self, on: bool) -> None:
        """See `Router.set_locality_rules`: the cap is as configured where they are `on`, else no cap."""
        if isinstance(self.max_remote_fraction, Parameter):
            self.max_remote_fraction.set_data(Tensor(self.trained_fraction if on else 1.0, dtype.float32))

    def select(self, x: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor, Tensor]:
        """See `Router.select`: for `x` and `tokens` the free choice, or the one at home beyond the cap."""
        probabilities = self.probabilities(x, tokens)
        scores = ops.stop_gradient(probabilities)
        local = self.local_experts(tokens["home"], tokens["group"])  # (T, n)
        free, free_weight = self.select_top_k(scores, probabilities, tokens)
        near, near_weight = self.select_top_k(scores + 2.0 * local, probabilities, tokens)
        remote = 1.0 - ops.amin(ops.gather_elements(local, 1, free), 1)  # (T,) <- (T, k): 1 where any choice is remote
        loss_at_home = ops.stop_gradient((free_weight - near_weight).sum(1))  # (T,)
        home = one_hot(tokens["home"], self.homes)  # (T, W)
        cap = ops.floor(home.sum(0) * self.max_remote_fraction + _WHOLE)  # (W,)
        # What a token would lose is 0 or more (but for rounding), so tokens that stay anyway come last.
        rank = rank_by_priority(remote * (loss_at_home + 1.0), home)
        beyond_cap = ops.logical_and(remote > 0.5, rank >= (home * cap).sum(1))
        stays = beyond_cap.expand_dims(1)  # (T, 1) <- (T,)
        return ops.select(stays, near, free), ops.select(stays, near_weight, free_weight), probabilities


def rank_by_priority(priority: Tensor, member: Tensor) -> Tensor:
    """How many tokens of the same set come before each, <float32>[T].

    Larger priority comes first, of equal ones the earlier token: positions enter the keys, so that the order does not
    rest on how a sort treats ties.

    Args:
        priority: <float32>[T]. member: <float32>[T, S], one-hot set of each token.
    """
    count = priority.shape[0]
    index = ops.arange(0, count, 1, dtype=dtype.int64)
    priority = sortable_bits(priority)
    ascending, _ = ops.sort(priority)
    key = ops.searchsorted(ascending, priority) * count + (count - 1 - index)
    ordered, _ = ops.sort(key, descending=True)
    order = ops.cast(count - 1 - ops.floor_mod(ordered, count), dtype.int32)
    member = ops.gather(member, order, 0)  # (T, S), tokens by priority
    ahead = ((ops.cumsum(member, 0) - member) * member).sum(1)
    return ops.scatter_nd(order.reshape(-1, 1), ahead, (count,))  # (T,) back in their order <- (T, 1), (T,)


def build(context: RouterContext) -> Router:
    """The router of `context`."""
    return FasterMoERouter(context, context.options)
