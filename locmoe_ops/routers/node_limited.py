"""The top-k router with a limit on the nodes that a token goes to (DeepSeek-V3, arXiv 2412.19437, Section 2.1.2).

Shape legend: T tokens of this rank, k choices, n experts of a group, V nodes that they lie on, b = n / V.
"""

from mindspore import Tensor, ops

from locmoe_ops.routers.base import Router, RouterContext, RouterTokens, one_hot
from locmoe_ops.routers.specs.node_limited import NodeLimitedOptions, node_blocks
from locmoe_ops.routers.topk import TopKRouter, sizes_of


class NodeLimitedRouter(TopKRouter):
    """`TopKRouter` whose choices lie on at most M = `max_nodes` nodes.

    1. The score of a node is the sum of its k / M largest s_i + b_i, as the paper has it; rounded up where M does not
       divide k (ours).
    2. The M nodes of largest score are open to the token; of equal ones the lower index.
    3. The k largest s_i + b_i on these nodes, and all else as in `TopKRouter`.

    A node's experts of a group are neighbours (`node_blocks` sees to it). Nodes are those of the layout's
    expert-parallel group, in which a token finds each expert once: with the group on one node there is no limit.

    Args:
        context: of the router; layout and placement say which node holds which expert. options: its keys; a max_nodes
            that leaves fewer than k experts raises InputError.
    """

    def __init__(self, context: RouterContext, options: NodeLimitedOptions) -> None:
        super().__init__(context, options)
        self.nodes = node_blocks(options, sizes_of(context.shape), context.layout, context.placement)
        self.max_nodes = min(options.max_nodes, self.nodes)
        self.held = self.per_group // self.nodes  # b
        self.counted = min(-(-self.top_k // self.max_nodes), self.held)

    def open_scores(self, scores: Tensor, tokens: RouterTokens) -> Tensor:
        """See `TopKRouter.open_scores`, with the same `scores` and `tokens`: steps 1 and 2."""
        if self.max_nodes == self.nodes:
            return scores
        biased = self.biased_scores(scores, tokens).reshape(-1, self.held)  # (T * V, b) <- (T, n)
        node_score = ops.amax(biased, -1)  # (T * V,)
        for _ in range(1, self.counted):
            biased = biased - one_hot(self.argmax(biased), self.held) * self.out_of_play
            node_score = node_score + ops.amax(biased, -1)
        rest = node_score.reshape(-1, self.nodes)  # (T, V) <- (T * V,)
        closed = ops.ones_like(rest)
        for _ in range(self.max_nodes):
            best = one_hot(self.argmax(rest), self.nodes)
            closed, rest = closed - best, rest - best * (self.counted * self.out_of_play)
        of_experts = ops.tile(closed.expand_dims(-1), (1, 1, self.held))  # (T, V, b) <- (T, V, 1)
        of_experts = of_experts.reshape(-1, self.per_group)  # (T, n) <- (T, V, b)
        return scores - of_experts * self.out_of_play


def build(context: RouterContext) -> Router:
    """The router of `context`."""
    return NodeLimitedRouter(context, context.options)
