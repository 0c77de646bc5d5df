"""SMILE's router (arXiv 2212.05191) as a user writes it, from docs/routers.md: a node first, then experts on it."""

from dataclasses import dataclass

import numpy as np

from mindspore import Parameter, Tensor, nn, ops

from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterCost, RouterSpec
from locmoe_ops.routers.base import RoutingStatistics, one_hot
from locmoe_ops.routers.gated import GatedRouter
from locmoe_ops.routers.losses import load_balancing_loss


@dataclass(frozen=True)
class Options:
    nodes: int = key(2, "nodes that a group's experts are on", minimum=1)
    node_weight: float = key(0.005, "weight of the load-balancing loss over nodes", minimum=0.0)
    expert_weight: float = key(0.005, "weight of the one over the experts of a node", minimum=0.0)


def cost(options, sizes):
    rows = sizes.num_groups * (options.nodes + sizes.per_group // options.nodes)
    return RouterCost({"gate.weight": (rows, sizes.hidden_size)}, rows * sizes.hidden_size, statistics="asked")


ROUTER = RouterSpec(Options, second_experts=True, cost=cost)


class TwoGates(nn.Cell):
    def __init__(self, shape, rows, seed):
        super().__init__()
        self.shape = (-1, shape.num_groups, rows)
        drawn = np.random.default_rng(seed).normal(0.0, 0.02, (shape.num_groups * rows, shape.hidden_size))
        self.weight = Parameter(Tensor(drawn.astype(np.float32)), name="weight")
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x, group_mask):
        values = self.matmul(x, self.weight).reshape(self.shape)  # (T, G, V + m) <- (T, G * (V + m))
        return (values * group_mask.expand_dims(-1)).sum(1)  # (T, V + m)


class TwoLevelRouter(GatedRouter):
    def __init__(self, context, options):
        nodes, inside = options.nodes, context.shape.per_group // options.nodes
        super().__init__(context, TwoGates(context.shape, nodes + inside, (context.seed, context.layer)))
        self.nodes, self.by_level = nodes, (-1, context.shape.num_groups, nodes, inside)
        self.node_weight, self.expert_weight = options.node_weight, options.expert_weight
        self.sums = RoutingStatistics(context)

    def select(self, x, tokens):
        values = self.values(x, tokens)  # (T, V + m)
        of_node, of_expert = self.softmax(values[:, : self.nodes]), self.softmax(values[:, self.nodes :])
        both = of_node.expand_dims(2) * of_expert.expand_dims(1)  # (T, V, m)
        node = one_hot(self.argmax(of_node), self.nodes).expand_dims(2)  # (T, V, 1)
        scores, both = (both + node).reshape(-1, self.per_group), both.reshape(-1, self.per_group)  # (T, n)
        choice, weight = self.select_top_k(ops.stop_gradient(scores), both, tokens)
        return choice, weight, both

    def losses(self, expert, probabilities, tokens):
        counts, sums = self.sums(expert, probabilities, tokens["group"], tokens["home"])
        counts, sums = counts.reshape(self.by_level), sums.reshape(self.by_level)  # (S, G, V, m)
        return self.level(counts, sums, 3) * self.node_weight + self.level(
            counts, sums, 2
        ) * self.expert_weight, Tensor(0.0)

    def level(self, counts, sums, axis):
        return load_balancing_loss(
            counts.sum(axis).flatten(start_dim=1), sums.sum(axis).flatten(start_dim=1), self.num_groups
        )


def build(context):
    return TwoLevelRouter(context, context.options)
