"""Read first: a whole sparse feed-forward layer. A router decides, a dispatcher moves, experts compute, the layer
composes.

1. `MultiLevelRouting`: the token's domain picks an expert group (level 1), a router by name picks experts of it (level
   2).
2. `MoEFeedForward`: routing, dispatch to the experts, combine; beside them shared experts, where there are any.
3. `build_moe`: such a layer from a handful of sizes, for use in any network.

Shape legend: T tokens of this rank, d hidden size, k choices a token, N = k * T assignments, E experts.
"""

from typing import Dict, Optional, Sequence, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.capacity.factor import capacity_by_factor
from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.dispatch.flat import FlatDispatcher
from locmoe_ops.dispatch.geometry import DispatchOptions, DispatchSetup, FixedCapacities
from locmoe_ops.dispatch.slots import DispatchContext
from locmoe_ops.draws import normal_part
from locmoe_ops.errors import InputError
from locmoe_ops.experts import ExpertBank
from locmoe_ops.functions import choice_major
from locmoe_ops.kernels import CPU
from locmoe_ops.router_registry import router_spec
from locmoe_ops.routers.base import (
    LayerTokens,
    Router,
    RouterContext,
    RouterTokens,
    RoutingResult,
    RoutingShape,
    make_router,
    one_hot,
)
from locmoe_ops.routers.gates import DenseGate
from locmoe_ops.topology import ExpertPlacement, Topology, local_experts_table, most_nodes, numbered_nodes


class MultiLevelRouting(nn.Cell):
    """Level 1: the token's domain picks its expert group. Level 2: `router` picks experts of that group.

    Args:
        domain_groups: group of each domain. router: level 2.

    Inputs: x <float>[T, d]; tokens, `LayerTokens`. Output: `RoutingResult`.
    """

    def __init__(self, domain_groups: Sequence[int], router: Router) -> None:
        super().__init__()
        wrong = [g for g in domain_groups if not 0 <= g < router.num_groups]
        if wrong or not domain_groups:
            raise InputError(
                f"domain_groups {list(domain_groups)}: expected group ids 0 to {router.num_groups - 1}, one a domain"
            )
        self.domain_groups = Tensor(np.asarray(domain_groups, np.int32))
        self.router = router
        self.needs_word = "word" in router.needs
        self.needs_domain = "domain" in router.needs

    def construct(self, x: Tensor, tokens: LayerTokens) -> RoutingResult:
        group = ops.gather(self.domain_groups, tokens["domain"], 0)  # (T,) <- domains of tokens (T,)
        level_2: RouterTokens = {
            "ids": tokens["ids"],
            "group": group,
            "home": tokens["home"],
            "seed": tokens["seed"],
        }
        if self.needs_word:
            level_2["word"] = tokens["word"]
        if self.needs_domain:
            level_2["domain"] = tokens["domain"]
        return self.router(x, level_2)


class MoEFeedForward(nn.Cell):
    """A drop-in for a dense FFN on tokens [T, d].

    1. routing: experts and weights of each token, and the losses.
    2. dispatcher: tokens to expert buffers, on whichever rank; experts; back to tokens, scaled by their weights. Tokens
       travel in the type of the experts' matmuls. A dropped token gets 0 and lives on in the residual. Where the
       dispatcher re-picks overflow, the token's second expert has its own weight.
    3. Shared experts, where there are any: what they make of every token, dropped or not, is added (DeepSeekMoE, arXiv
       2401.06066, Eq. 9). They have no weight of the router, no slot, and no place in its losses and statistics.
    4. The report: losses and sums for the objective and the metrics.

    Args:
        routing, dispatcher, experts: the parts.
        local: bool[layout ranks, E], experts on the same node as a rank (`local_experts_table`), for the statistics.
        scale_by_gate: False gives each of a token's k experts the weight 1/k, so that experts that are copies of one
            network give what that network gives.
        evaluation_dispatcher: used outside training, where more slots are wanted; default: the same.

    Inputs: x <float>[T, d]; tokens, a dict of ids, domain, home, seed <int32>[T] each; dispatcher, in place of the
    layer's own, as inference has it, with nothing to report; default: its own.
    Outputs: y <float>[T, d] in x's dtype, and a dict of aux_loss, locality_loss (weighted, equal on all ranks) and this
    rank's sums: assigned <float32>[E] (as chosen, before drops), kept and kept_local <float32> scalars (as finally
    taken); undecided <float32>, the assignments of tokens that the router's rule left undecided, where the router
    counts them; value_sums <float32>[E], where it sums its gate values; required <float32>[E * B], where a bias follows
    quantiles (see `Router.required`); beyond_limit <float32>, rows that came here beyond the room for them, where a
    dispatcher limits that; copies <float32>, of tokens that are sent to other nodes, where a dispatcher counts them;
    tokens_by_nodes <float32>[Q], tokens whose experts are on 1, 2, ... Q nodes, Q = `most_nodes`, where k > 1 and a
    layer's experts are on several; and what was routed: gate_input <float>[T, d] (see `Router.gate_input`), and
    expert <int32>[T, k] and weight <float32>[T, k], as chosen. What a graph does not use of them costs it nothing.
    """

    def __init__(
        self,
        routing: MultiLevelRouting,
        dispatcher: Dispatcher,
        experts: ExpertBank,
        local: np.ndarray,
        scale_by_gate: bool = True,
        evaluation_dispatcher: Optional[Dispatcher] = None,
    ) -> None:
        super().__init__()
        self.routing = routing
        self.dispatcher = dispatcher
        self.evaluation_dispatcher = evaluation_dispatcher or dispatcher
        self.experts = experts
        self.repicks = dispatcher.repicks
        if not self.repicks == self.evaluation_dispatcher.repicks == routing.router.offers_second:
            raise InputError(
                f"overflow: the dispatchers re-pick: {self.repicks}, {self.evaluation_dispatcher.repicks}; the router "
                f"offers second experts: {routing.router.offers_second}; expected all alike"
            )
        self.scale_by_gate = scale_by_gate
        self.top_k = routing.router.top_k
        self.num_experts = routing.router.num_experts
        self.local = Tensor(np.asarray(local, np.float32))
        self.most_nodes = most_nodes(self.top_k, np.asarray(local))
        if self.most_nodes:
            of_node = np.eye(int(numbered_nodes(local).max()) + 1, dtype=np.float32)[numbered_nodes(local)]
            self.of_node = Tensor(of_node)  # (E, V), V nodes
            self.node_counts = Tensor(np.arange(1, self.most_nodes + 1, dtype=np.float32))
            self.matmul = ops.MatMul()
        self.has_shared_experts = False
        self.shared_experts: nn.Cell = nn.Identity()

    def add_shared_experts(self, network: nn.Cell) -> None:
        """Lets every token pass through `network` too, all shared experts in one, which every rank holds whole (but for
        its part in a tensor-parallel group): <float>[T, d] -> <float>[T, d].
        """
        self.has_shared_experts = True
        # Checkpoints know its parameters by the name of this attribute.
        self.shared_experts = network

    def construct(
        self, x: Tensor, tokens: Dict[str, Tensor], dispatcher: Optional[Dispatcher] = None
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        routing = self.routing(x, tokens)
        chosen, gate, scale = routing["expert"], ops.stop_gradient(routing["weight"]), self._scale(routing["weight"])
        second = (routing["second_expert"], self._scale(routing["second_weight"])) if self.repicks else None
        # What is half precision already is not made wider for the way.
        rows = ops.cast(x, self.experts.compute_dtype) if x.dtype == dtype.float32 else x
        if dispatcher is not None:
            y, _ = dispatcher.forward(rows, chosen, gate, scale, self.experts, second)
            return self._with_shared(y, rows, x), {}
        if self.training:
            y, context = self.dispatcher.forward(rows, chosen, gate, scale, self.experts, second)
        else:
            y, context = self.evaluation_dispatcher.forward(rows, chosen, gate, scale, self.experts, second)
        return self._with_shared(y, rows, x), self._report(routing, context, tokens["home"])

    def _with_shared(self, routed: Tensor, rows: Tensor, x: Tensor) -> Tensor:
        """<float>[T, d] in the type of `x`: `routed`, and what shared experts make of `rows`, added in that type."""
        y = ops.cast(routed, x.dtype)
        return y + ops.cast(self.shared_experts(rows), x.dtype) if self.has_shared_experts else y

    def _scale(self, weight: Tensor) -> Tensor:
        """What outputs of experts are multiplied by, given the router's weights: the same shape."""
        return weight if self.scale_by_gate else ops.full_like(weight, 1.0 / self.top_k)

    def _report(self, routing: RoutingResult, context: DispatchContext, home: Tensor) -> Dict[str, Tensor]:
        """Losses, and sums over this rank's assignments; `context` is the dispatcher's, `home` <int32>[T]."""
        kept = context["keep_mask"]  # (N, 1), choice-major
        chosen = one_hot(choice_major(routing["expert"]), self.num_experts)  # (N, E) <- (N,) <- (T, k)
        finally_taken = one_hot(context["expert"], self.num_experts) if self.repicks else chosen
        nearby = ops.gather(self.local, home, 0)  # (T, E) <- (layout ranks, E), (T,)
        nearby = nearby if self.top_k == 1 else ops.tile(nearby, (self.top_k, 1))  # (N, E) <- (T, E)
        report = {
            "aux_loss": routing["aux_loss"],
            "locality_loss": routing["locality_loss"],
            "assigned": chosen.sum(0),
            "kept": kept.sum(),
            "kept_local": (finally_taken * kept * nearby).sum(),
            "gate_input": routing["gate_input"],
            "expert": routing["expert"],
            "weight": routing["weight"],
        }
        if self.most_nodes:
            report["tokens_by_nodes"] = self._tokens_by_nodes(chosen)
        if "undecided" in routing:
            report["undecided"] = routing["undecided"].sum() * self.top_k
        if "value_sums" in routing:
            report["value_sums"] = routing["value_sums"]
        if "required" in routing:
            report["required"] = routing["required"]
        if "beyond_limit" in context:
            report["beyond_limit"] = context["beyond_limit"]
        if "copies" in context:
            report["copies"] = context["copies"]
        return report

    def _tokens_by_nodes(self, chosen: Tensor) -> Tensor:
        """<float32>[Q] <- `chosen` <float32>[N, E], one-hot: tokens by the number of nodes that hold their experts."""
        of_token = chosen.reshape(self.top_k, -1, self.num_experts).sum(0)  # (T, E) <- (k, T, E) <- (N, E)
        touched = ops.cast(self.matmul(of_token, self.of_node) > 0.5, dtype.float32).sum(1)  # (T,) <- (T, V)
        is_count = ops.equal(touched.expand_dims(1), self.node_counts)  # (T, Q) <- (T, 1), (Q,)
        return ops.cast(is_count, dtype.float32).sum(0)


def build_moe(
    tokens: int,
    hidden_size: int,
    ffn_hidden_size: int,
    num_experts: int,
    router: str = "locmoe",
    top_k: int = 1,
    capacity_factor: float = 1.25,
    vocab_size: Optional[int] = None,
    activation: str = "gelu",
    seed: int = 1,
    collectives: Optional[Collectives] = None,
    tag: str = "moe",
    shared_experts: int = 0,
) -> MoEFeedForward:
    """An initialised MoE layer with one expert group.

    Args:
        tokens: T, tokens of every call on this rank. hidden_size: d, which num_experts must divide for `locmoe`.
        ffn_hidden_size: inner width of an expert. num_experts: E. top_k: k.
        router: name of any that is registered (`locmoe_ops.router_registry`), with its defaults; those that map token
            ids to experts need `vocab_size`, the number of ids.
        capacity_factor: slots per expert = ceil(factor * top_k * T / num_experts).
        activation: nonlinearity of the experts (`locmoe_ops.functions`). seed: of all initial weights.
        collectives: of a job with several ranks; default: this process alone. tag: unique among the job's layers.
        shared_experts: further ones of the same width, which every token passes through (see `shared_network`).

    Raises InputError where the sizes do not fit together or the router is unknown.
    """
    group = collectives or create_collectives("local", Topology(1, 1), 0)
    placement = ExpertPlacement(num_experts, 1, group.topology.expert)
    shape = RoutingShape(hidden_size, num_experts, 1, top_k)
    experts = ExpertBank(
        placement.local_experts(group.topology.ep_index(group.rank)), hidden_size, ffn_hidden_size, activation
    )
    experts.initialise(seed)
    spec = router_spec(router)
    chosen = make_router(
        RouterContext(
            router, spec.options(), shape, group.topology, placement, group, tag=tag, seed=seed, vocab_size=vocab_size
        )
    )
    for _, cell in chosen.cells_and_names():
        if isinstance(cell, DenseGate):
            cell.initialise(seed, 0.02)
    capacities = FixedCapacities(capacity_by_factor(tokens, top_k, num_experts, capacity_factor))
    options = DispatchOptions(drop_priority="weight" if spec.expert_choice else "position")
    setup = DispatchSetup(group.topology, placement, tokens, top_k, capacities, options)
    layer = MoEFeedForward(
        MultiLevelRouting((0,), chosen),
        FlatDispatcher(group, setup, tag),
        experts,
        local_experts_table(group.topology, placement),
    )
    if shared_experts:
        layer.add_shared_experts(shared_network(hidden_size, shared_experts * ffn_hidden_size, activation, seed))
    return layer


def shared_network(hidden_size: int, inner: int, activation: str, seed: int) -> nn.Cell:
    """`W_out . act(W_in . x + b_in) + b_out`, all shared experts of a layer in one: n networks of f inner features add
    up to one of n f. The same on every rank; summing its gradients over ranks is the caller's, as of the router's.

    Args:
        hidden_size: d. inner: inner features of all of them together.
        activation: name of the nonlinearity. seed: of the weights, drawn as an expert's are.
    """

    def linear(inputs: int, outputs: int, stream: int) -> nn.Cell:
        drawn = normal_part(np.random.SeedSequence((seed, stream)), (outputs, inputs), 0.02)
        return nn.Dense(inputs, outputs, weight_init=Tensor(drawn), bias_init="zeros")

    # An expert's matrices have the streams 0 and 1, with a number behind.
    return nn.SequentialCell(linear(hidden_size, inner, 2), CPU.activation(activation), linear(inner, hidden_size, 3))


def check_token_ids(ids: np.ndarray, domain: np.ndarray, vocab_size: int, domains: int) -> None:
    """Raises InputError where a token or domain id lies outside its table: a compiled gather would read wild memory.

    Args:
        ids, domain: integer arrays of any shape, on the host.
        vocab_size, domains: how many of either there are.
    """
    for name, values, limit in (("token id", ids, vocab_size), ("domain id", domain, domains)):
        if values.size and (values.min() < 0 or values.max() >= limit):
            worst = values.min() if values.min() < 0 else values.max()
            raise InputError(f"{name} {int(worst)} is out of range; expected 0 to {limit - 1}")
