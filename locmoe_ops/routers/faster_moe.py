"""A cap on tokens that leave their node, after FasterMoE (He et al., PPoPP 2022): by a rule of our own, or by that of
the fastmoe library's topology-aware gate (fmoe/gates/faster_gate.py).

The two differ in who may leave, in weights and in the loss:

- The library lets those leave whose first choice is remote and has the largest gate score. Our rule lets those leave
  that would lose most probability at home.
- The library always sends a token to two experts. Where the cap binds, a token that leaves has its other expert at
  home, all others have both at home, and the two weights are the softmax of their two gate scores. With our rule
  `top_k` is free, all of a token's choices are remote or local together, and weights are probabilities over the whole
  group.
- The library's loss counts first choices before the cap, over one rank's tokens. Ours is switch's, of what is finally
  chosen. Either is taken over the tokens that `moe.router.statistics` says.

On random input the two treated 47 of 68 tokens alike.

Shape legend: T tokens of this rank, k choices, n experts of a group, W ranks of the layout.
"""

from dataclasses import replace
from typing import Tuple, Union

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import Router, RouterContext, RouterTokens, RoutingStatistics, one_hot
from locmoe_ops.routers.priority import rank_within_sets
from locmoe_ops.routers.selection_bias import LocalExperts
from locmoe_ops.routers.specs.faster_moe import FasterMoEOptions
from locmoe_ops.routers.specs.switch import SwitchOptions
from locmoe_ops.routers.switch import SwitchRouter

_WHOLE = 1e-3  # a share of tokens that is whole but for rounding counts as whole
_LAST = -1e30  # priority of tokens that stay, below every gate score


class FasterMoERouter(SwitchRouter):
    """A learned gate of which at most a given share of a home's tokens may send to other nodes; `rule` says which.

    `ours`:

    1. Free choice: the k largest probabilities. A token with a remote expert among them wants to leave its node.
    2. Choice at home: the k largest with local experts first; remote ones only where the node has too few of the group.
    3. Of the tokens with the same home, at most `max_remote_fraction` leave: those that would lose most probability at
       home, of equal ones the earlier. The others take their choice at home. Weights are the probabilities of what is
       chosen.
    4. Load-balancing loss of what is chosen; with weight 0 there is none.

    `fastmoe`, the library's (k = 2):

    1. Free choice: the two largest gate scores. A token whose first choice is remote wants to leave its node.
    2. If fewer tokens of a home want to leave than its cap, floor(max_remote_fraction * tokens), all choices are free.
    3. Else as many as the cap leave: those with the largest score of the first choice, of equal ones the earlier. They
       have the best expert at home and their remote first choice; all others have the two best at home.
    4. Weights: the softmax of the two scores.
    5. Load-balancing loss of the first free choices, over their number; scaled as switch's, so that it is 1 where all
       is even (the library's is the same over n, times the square of the number of experts a rank).

    With `max_remote_fraction` 1 there is no cap under either rule. The library knows no expert groups: here all tokens
    of a home share one cap, whatever their group, and remote experts come last where a node has fewer than two of the
    group.

    The cap counts the tokens of one home in one call. Their number, and so every choice, is the same at any parallel
    degree as long as a home's tokens are processed together. A node without an expert of the token's group cannot keep
    it.

    Args:
        context: of the router. options: its keys; a max_remote_fraction outside [0, 1], or the library's rule with a
            top_k other than 2, raises InputError.
    """

    def __init__(self, context: RouterContext, options: FasterMoEOptions) -> None:
        super().__init__(context, SwitchOptions(options.aux_loss_weight))
        if not 0.0 <= options.max_remote_fraction <= 1.0:
            raise InputError(f"max_remote_fraction is {options.max_remote_fraction}, expected 0 to 1")
        self.by_library = options.rule == "fastmoe"
        if self.by_library and self.top_k != 2:
            raise InputError(f"top_k {self.top_k}: rule fastmoe sends a token to two experts; expected 2")
        if self.by_library:  # the loss counts first choices
            self.sums = RoutingStatistics(replace(context, shape=replace(context.shape, top_k=1)))
        self.max_remote_fraction: Union[float, Parameter] = options.max_remote_fraction
        self.trained_fraction = options.max_remote_fraction
        if context.rules_change:  # without another graph
            self.max_remote_fraction = Parameter(
                Tensor(options.max_remote_fraction, dtype.float32), name="max_remote_fraction", requires_grad=False
            )
        self.homes = context.layout.world_size
        self.local_experts = LocalExperts(context.shape, context.layout, context.placement)

    def offer_second(self, second: nn.Cell) -> None:
        """See `GatedRouter.offer_second`. Raises InputError under the library's rule, where `second` has no place."""
        if self.by_library:
            raise InputError(
                "moe.dispatch.overflow is repick with moe.router.faster_moe.rule fastmoe, which weighs a token's two "
                "experts against each other; expected drop, or rule ours"
            )
        super().offer_second(second)

    def set_locality_rules(self, on: bool) -> None:
        """See `Router.set_locality_rules`: the cap is as configured where they are `on`, else no cap."""
        if isinstance(self.max_remote_fraction, Parameter):
            self.max_remote_fraction.set_data(Tensor(self.trained_fraction if on else 1.0, dtype.float32))

    def select(self, x: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor, Tensor]:
        """See `Router.select`: for `x` and `tokens` the free choice, or the one at home beyond the cap."""
        values = self.score(self.values(x, tokens))
        probabilities = self.softmax(values)
        scores = ops.stop_gradient(probabilities)
        local = self.local_experts(tokens["home"], tokens["group"])  # (T, n)
        free, free_weight = self.select_top_k(scores, probabilities, tokens)
        near, near_weight = self.select_top_k(scores + 2.0 * local, probabilities, tokens)
        is_local = ops.gather_elements(local, 1, free)  # (T, k) <- (T, n)
        if self.by_library:
            choice = self.library_choice(ops.stop_gradient(values), free, near, is_local[:, 0], tokens["home"])
            return choice, self.softmax(ops.gather_elements(values, 1, choice)), probabilities
        home = one_hot(tokens["home"], self.homes)  # (T, W)
        remote = 1.0 - ops.amin(is_local, 1)  # (T,) <- (T, k): 1 where any choice is remote
        loss_at_home = ops.stop_gradient((free_weight - near_weight).sum(1))  # (T,)
        # What a token would lose is 0 or more (but for rounding), so tokens that stay anyway come last.
        rank = rank_within_sets((remote * (loss_at_home + 1.0)).expand_dims(0), tokens["home"])[0]  # (T,) <- (1, T)
        beyond_cap = ops.logical_and(remote > 0.5, rank >= (home * self.caps(home)).sum(1))
        stays = beyond_cap.expand_dims(1)  # (T, 1) <- (T,)
        return ops.select(stays, near, free), ops.select(stays, near_weight, free_weight), probabilities

    def caps(self, home: Tensor) -> Tensor:
        """How many tokens of each home may leave, <float32>[W] <- one-hot `home` <float32>[T, W]."""
        return ops.floor(home.sum(0) * self.max_remote_fraction + _WHOLE)

    def library_choice(self, values: Tensor, free: Tensor, near: Tensor, is_local: Tensor, home: Tensor) -> Tensor:
        """The library's rule, steps 2 and 3: experts <int32>[T, 2].

        Args:
            values: <float32>[T, n], gate scores. free, near: <int32>[T, 2], the best of all experts and at home.
            is_local: <float32>[T], 1 where the first free choice is at home. home: <int32>[T].
        """
        homes, remote = one_hot(home, self.homes), 1.0 - is_local  # (T, W), (T,)
        cap = self.caps(homes)  # (W,)
        binds = ops.logical_and((homes * remote.expand_dims(1)).sum(0) >= cap, cap < homes.sum(0))  # (W,)
        bound = (homes * ops.cast(binds, dtype.float32)).sum(1, keepdims=True) > 0.5  # (T, 1): at the token's home
        first_score = ops.gather_elements(values, 1, free[:, :1]).reshape(-1)  # (T,) <- (T, 1) <- (T, n)
        priority = ops.select(remote > 0.5, first_score, ops.full_like(first_score, _LAST))
        rank = rank_within_sets(priority.expand_dims(0), home)[0]  # (T,) <- (1, T)
        leaves = ops.logical_and(remote > 0.5, rank < (homes * cap).sum(1)).expand_dims(1)  # (T, 1) <- (T,)
        second = ops.select(leaves, free[:, :1], near[:, 1:])  # (T, 1)
        return ops.select(bound, ops.concat((near[:, :1], second), 1), free)  # (T, 2) <- (T, 1), (T, 1)

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor]:
        """See `Router.losses`, with the same `expert`, `probabilities` and `tokens`; by the library's rule the first
        free choices are counted.
        """
        if self.by_library:
            first = self.argmax(ops.stop_gradient(probabilities))  # (T,), as in `select`
            expert = (first + tokens["group"] * self.per_group).expand_dims(1)  # (T, 1) <- (T,)
        return super().losses(expert, probabilities, tokens)


def build(context: RouterContext) -> Router:
    """The router of `context`."""
    return FasterMoERouter(context, context.options)
