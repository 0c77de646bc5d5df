"""SMILE's two-level router (He et al., arXiv 2212.05191): a node first, then experts inside it.

Shape legend: T tokens of this rank, d hidden size, k choices, E experts, G groups, n = E / G, V nodes, m = n / V
experts of a group on a node, S statistics groups.
"""

from typing import Tuple

from mindspore import Tensor, dtype, ops

from locmoe_ops.routers.base import Router, RouterContext, RouterTokens, RoutingShape, RoutingStatistics, one_hot
from locmoe_ops.routers.gated import GatedRouter
from locmoe_ops.routers.gates import DenseGate
from locmoe_ops.routers.losses import load_balancing_loss
from locmoe_ops.routers.specs.smile import SmileOptions


class SmileRouter(GatedRouter):
    """A router over nodes, and one over the experts inside a node.

    1. p = softmax(W_node x) over the V nodes, q = softmax(W_expert x) over the m experts of a node. Both are rows of
       one `DenseGate`, V + m of them for each group: the nodes' first.
    2. The token's node: the likeliest, v = argmax p; of equal ones the lower.
    3. Its experts: the k likeliest of that node by q. The weight of expert j there is p_v q_j.
    4. L = alpha V sum_v f_v P_v + beta m sum_j f_j Q_j, with f_v and f_j the shares of tokens that go to node v and to
       the j-th expert of any node, P_v and Q_j the means of p and q over tokens. It is alpha + beta where all is even.

    Expert i of a group is the (i mod m)-th of node floor(i / m); on the cluster that a job is validated for these are
    together on one node. No node is preferred: locality is what two levels save in messages, not where tokens go.

    The paper has k = 1; several experts of the one node are ours, so that one copy of a token still does. Assumed: the
    second router has the same weights for all nodes (its parameters are shared by data parallelism), and its loss
    counts the j-th experts of all nodes together. Expert groups are ours; each has both routers.

    Args:
        context: of the router. options: its keys.
    """

    def __init__(self, context: RouterContext, options: SmileOptions) -> None:
        shape, nodes = context.shape, options.num_nodes
        inside = shape.per_group // nodes
        rows = shape.num_groups * (nodes + inside)
        super().__init__(context, DenseGate(RoutingShape(shape.hidden_size, rows, shape.num_groups)))
        self.nodes, self.inside = nodes, inside
        self.node_loss_weight, self.expert_loss_weight = options.node_loss_weight, options.expert_loss_weight
        self.sums = RoutingStatistics(context)

    def probabilities(self, x: Tensor, tokens: RouterTokens) -> Tensor:
        """See `GatedRouter.probabilities`, of `x` and `tokens`: p_v q_j of expert j of node v."""
        of_node, of_expert = ops.split(self.values(x, tokens), (self.nodes, self.inside), 1)  # (T, V), (T, m)
        both = self.softmax(of_node).expand_dims(2) * self.softmax(of_expert).expand_dims(1)  # (T, V, m)
        return both.reshape(-1, self.nodes * self.inside)  # (T, n) <- (T, V, m)

    def select(self, x: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor, Tensor]:
        """See `Router.select`: for `x` and `tokens` the k best on the best node."""
        probabilities = self.probabilities(x, tokens)
        by_node = ops.stop_gradient(probabilities).reshape(-1, self.nodes, self.inside)  # (T, V, m) <- (T, n)
        node = one_hot(self.argmax(by_node.sum(2)), self.nodes)  # (T, V); the q_j sum to 1, which leaves p
        scores = (by_node + 2.0 * node.expand_dims(2)).reshape(-1, self.per_group)  # (T, n) <- (T, V, m) + (T, V, 1)
        choice, weight = self.select_top_k(scores, probabilities, tokens)
        return choice, weight, probabilities

    def losses(self, expert: Tensor, probabilities: Tensor, tokens: RouterTokens) -> Tuple[Tensor, Tensor]:
        """See `Router.losses`, with the same `expert`, `probabilities` and `tokens`."""
        counts, sums = self.sums(expert, probabilities, tokens["group"], tokens["home"])  # (S, E) each
        shape = (-1, self.num_groups, self.nodes, self.inside)
        counts, sums = counts.reshape(shape), sums.reshape(shape)  # (S, G, V, m) <- (S, E)
        loss = self.balance_of_level(counts, sums, 3) * self.node_loss_weight
        loss = loss + self.balance_of_level(counts, sums, 2) * self.expert_loss_weight
        return loss, Tensor(0.0, dtype.float32)

    def balance_of_level(self, counts: Tensor, sums: Tensor, axis: int) -> Tensor:
        """The load-balancing loss, unweighted, of `counts` and `sums` <float32>[S, G, V, m], each summed over `axis`: 3
        leaves nodes, 2 the experts of any node.
        """
        sets = counts.shape[0]
        counts, sums = counts.sum(axis).reshape(sets, -1), sums.sum(axis).reshape(sets, -1)  # (S, G*V) or (S, G*m)
        return load_balancing_loss(counts, sums, self.num_groups)


def build(context: RouterContext) -> Router:
    """The router of `context`."""
    return SmileRouter(context, context.options)
