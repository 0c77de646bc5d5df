"""The MoE layer over N simulated ranks: route, keep what fits, compute the experts, combine; and the same way back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from locmoe_ops.reference import losses, token_losses, topk
from locmoe_ops.reference.experts import expert_gradients, expert_output
from locmoe_ops.reference.routing import (
    Routing,
    combine_weight,
    gate_gradients,
    is_undecided,
    locmoe_values,
    replace_choices,
    route,
    second_choices,
    through_weights,
)
from locmoe_ops.reference.slots import keep_within_capacity, repick, share_copies
from locmoe_ops.reference.spec import (
    LayerGradients,
    LayerParameters,
    LayerResult,
    LayerSpec,
    LayerStats,
    RankTokens,
    SharedWeights,
    check_inputs,
)


@dataclass(frozen=True)
class _Plan:
    """Where one rank's tokens go."""

    tokens: RankTokens
    routing: Routing  # as chosen
    taken: Routing  # the same, with what was re-picked
    weight: np.ndarray  # (T,k) float64
    kept: np.ndarray  # (T,k) bool

    def kept_assignments(self) -> list[tuple[int, int, int]]:
        """(token, choice, expert) of every assignment that found a slot."""
        return [(int(t), int(choice), int(self.taken.expert[t, choice])) for t, choice in np.argwhere(self.kept)]


def moe_layer(spec: LayerSpec, parameters: LayerParameters, ranks: Sequence[RankTokens]) -> LayerResult:
    """Outputs, losses and statistics of the layer.

    A token's output is the sum over its kept choices of weight * expert(token); a token that lost all its choices gets
    0. Shared experts are added to that, for every token. Router jitter is not part of the reference.

    Args:
        spec, parameters: of the layer. ranks: its tokens, one entry a simulated rank.

    Raises:
        InputError: ids out of range, missing parameters.
    """
    plans = _plan(spec, parameters, ranks)
    routings = [plan.routing for plan in plans]
    outputs = tuple(np.zeros(tokens.x.shape) for tokens in ranks)
    for plan, output in zip(plans, outputs):
        for t, choice, expert in plan.kept_assignments():
            x = plan.tokens.x[t].astype(np.float64)
            output[t] += plan.weight[t, choice] * expert_output(parameters, spec.activation, expert, x)
    if parameters.shared is not None:
        _add_shared(parameters.shared, spec.activation, ranks, outputs)
    return LayerResult(
        outputs=outputs,
        aux_loss=losses.aux_loss(spec, ranks, routings)
        + losses.divergence_loss(spec, ranks, routings)
        + token_losses.sequence_loss(spec, routings)
        + token_losses.z_loss(spec, routings),
        locality_loss=losses.locality_loss(spec, ranks, routings),
        stats=_statistics(spec, parameters, plans),
        expert=tuple(plan.taken.expert for plan in plans),
        weight=tuple(plan.weight for plan in plans),
        kept=tuple(plan.kept for plan in plans),
    )


def moe_layer_gradients(
    spec: LayerSpec,
    parameters: LayerParameters,
    ranks: Sequence[RankTokens],
    output_gradients: Sequence[np.ndarray],
    aux_weight: float,
    locality_weight: float,
) -> LayerGradients:
    """Gradients of an objective J that stands for whatever follows the layer.

    J = sum over ranks <output_gradients, outputs> + aux_weight * aux_loss + locality_weight * locality_loss.

    Args:
        spec, parameters, ranks: as for `moe_layer`.
        output_gradients: (T,d) float per rank.
        aux_weight: factor on a loss that already contains alpha: 1 for the training objective, 0 to leave it out.
        locality_weight: likewise, for the loss that already contains mu.

    The choice of experts and of kept assignments is constant; ReLU passes nothing back at 0. Raises as `moe_layer`.
    """
    plans = _plan(spec, parameters, ranks)
    routings = [plan.routing for plan in plans]
    aux = losses.aux_loss_gradient(spec, ranks, routings)
    divergence = losses.divergence_loss_gradient(spec, ranks, routings)
    locality = losses.locality_loss_gradient(spec, ranks, routings)
    sequence, partition = token_losses.sequence_gradient(spec, routings), token_losses.z_gradient(spec, routings)
    total = LayerGradients(
        x=tuple(np.zeros(tokens.x.shape) for tokens in ranks),
        w1=np.zeros(parameters.w1.shape),
        b1=np.zeros(parameters.b1.shape),
        w2=np.zeros(parameters.w2.shape),
        b2=np.zeros(parameters.b2.shape),
        gate=np.zeros((spec.gate_rows, parameters.w1.shape[1])) if spec.learns_gate else None,
    )
    for index, plan in enumerate(plans):
        probability_gradient = aux_weight * (aux[index] + divergence[index]) + locality_weight * locality[index]
        output_gradient = output_gradients[index].astype(np.float64)
        weight_gradient = np.zeros(plan.weight.shape)
        for t, choice, expert in plan.kept_assignments():
            x = plan.tokens.x[t].astype(np.float64)
            part = expert_gradients(parameters, spec.activation, expert, x, plan.weight[t, choice] * output_gradient[t])
            total.x[index][t] += part.x
            total.w1[expert] += part.w1
            total.b1[expert] += part.b1
            total.w2[expert] += part.w2
            total.b2[expert] += part.b2
            if spec.scale_by_gate:
                output = expert_output(parameters, spec.activation, expert, x)
                weight_gradient[t, choice] = np.dot(output_gradient[t], output)
        of_weights = through_weights(spec, plan.taken, weight_gradient)
        if spec.router in topk.ROUTERS:
            of_shares = probability_gradient + aux_weight * sequence[index]
            probability_gradient = aux_weight * partition[index]
            for t, score in enumerate(plan.routing.score):
                of_score = of_weights[t] + topk.shares_gradient(score, of_shares[t])
                probability_gradient[t] += topk.values_gradient(spec.topk_rules, plan.routing.values[t], of_score)
        else:
            probability_gradient += of_weights
        through_gate, gate = gate_gradients(spec, parameters, plan.tokens, plan.routing, probability_gradient)
        total.x[index][:] += through_gate
        if total.gate is not None:
            total.gate[:] += gate
    if parameters.shared is None:
        return total
    return replace(total, shared=_through_shared(parameters.shared, spec.activation, ranks, output_gradients, total.x))


def _add_shared(
    shared: SharedWeights, activation: str, ranks: Sequence[RankTokens], outputs: Sequence[np.ndarray]
) -> None:
    """Adds to the `outputs` (T,d) of each rank what every shared expert makes of every token."""
    for tokens, output in zip(ranks, outputs):
        for t, x in enumerate(tokens.x.astype(np.float64)):
            for expert in range(len(shared.w1)):
                output[t] += expert_output(shared, activation, expert, x)


def _through_shared(
    shared: SharedWeights,
    activation: str,
    ranks: Sequence[RankTokens],
    output_gradients: Sequence[np.ndarray],
    through: Sequence[np.ndarray],
) -> SharedWeights:
    """The gradients of the shared experts' weights; adds to the tokens' own, `through` (T,d), what comes by them."""
    total = SharedWeights(*(np.zeros(whole.shape) for whole in (shared.w1, shared.b1, shared.w2, shared.b2)))
    for tokens, output_gradient, of_x in zip(ranks, output_gradients, through):
        for t, x in enumerate(tokens.x.astype(np.float64)):
            for expert in range(len(shared.w1)):
                part = expert_gradients(shared, activation, expert, x, output_gradient[t].astype(np.float64))
                of_x[t] += part.x
                total.w1[expert] += part.w1
                total.b1[expert] += part.b1
                total.w2[expert] += part.w2
                total.b2[expert] += part.b2
    return total


def _plan(spec: LayerSpec, parameters: LayerParameters, ranks: Sequence[RankTokens]) -> list[_Plan]:
    check_inputs(spec, parameters, ranks)
    plans = []
    for source, tokens in enumerate(ranks):
        taken = routing = route(spec, parameters, tokens)
        # The gate weight ranks the assignments even where it does not scale the output.
        ranked, capacity = (routing.expert, routing.gate_weight), spec.capacities(source)
        kept = keep_within_capacity(*ranked, capacity, spec.drop_priority)
        if spec.overflow == "repick":
            second = second_choices(spec, tokens, routing)
            second_expert = np.where(second < 0, -1, routing.group * spec.experts_per_group + second)
            moved = repick(*ranked, kept, second_expert, capacity, spec.drop_priority)
            taken, kept = replace_choices(spec, routing, moved, second), kept | moved
        if spec.copies is not None:
            assert spec.source_nodes is not None
            own = spec.source_nodes[source]
            nodes = [spec.node_of_expert(own, expert) for expert in range(spec.num_experts)]
            kept = share_copies(taken.expert, routing.gate_weight, kept, nodes, own, spec.copies, spec.drop_priority)
        plans.append(_Plan(tokens, routing, taken, combine_weight(spec, taken), kept))
    return plans


def _statistics(spec: LayerSpec, parameters: LayerParameters, plans: Sequence[_Plan]) -> LayerStats:
    tokens_per_expert = np.zeros(spec.num_experts, np.int64)
    assignments = kept = local = 0
    undecided: list[bool] = []
    for plan in plans:
        if spec.router == "locmoe":
            undecided += [
                is_undecided(spec, locmoe_values(spec, parameters, plan.tokens, t, group))
                for t, group in enumerate(plan.routing.group)
            ]
        taken_up = plan.routing.expert[plan.routing.expert < spec.num_experts]
        assignments += taken_up.size
        for expert in taken_up:
            tokens_per_expert[expert] += 1
        for t, _, expert in plan.kept_assignments():
            kept += 1
            local += spec.is_local(spec.layout.node_of(int(plan.tokens.home[t])), expert)
    return LayerStats(
        tokens_per_expert=tokens_per_expert,
        drop_fraction=(assignments - kept) / assignments if assignments else 0.0,
        local_fraction=local / kept if kept else 0.0,
        load_max_over_mean=float(tokens_per_expert.max() / tokens_per_expert.mean()) if assignments else 0.0,
        undecided_fraction=sum(undecided) / len(undecided) if undecided else 0.0,
        tokens_by_nodes=_tokens_by_nodes(spec, plans),
    )


def _tokens_by_nodes(spec: LayerSpec, plans: Sequence[_Plan]) -> np.ndarray:
    """See `LayerStats.tokens_by_nodes`: by the ranks of the first expert-parallel group, and their nodes."""
    ranks = spec.layout.groups("ep")[0]
    most = min(spec.top_k, len({spec.layout.node_of(rank) for rank in ranks}))
    counts = np.zeros(most if most > 1 else 0, np.int64)
    for plan in plans if most > 1 else ():
        for chosen in plan.routing.expert:
            holders = [spec.placement.ep_index_of(int(expert)) for expert in chosen if expert < spec.num_experts]
            if holders:  # else no expert took the token
                counts[len({spec.layout.node_of(ranks[holder]) for holder in holders}) - 1] += 1
    return counts
