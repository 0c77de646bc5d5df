from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from scipy import special

from locmoe_ops.reference.layer import moe_layer, moe_layer_gradients
from locmoe_ops.reference.routing import grap_weights
from locmoe_ops.reference.spec import LayerResult, RankTokens
from locmoe_ops.topology import local_experts_table

SHARED = ("w1", "b1", "w2", "b2")
FIELDS = ("x", "token_ids", "domain", "home")
ROUTERS = [
    {"router": "hash"},
    {"router": "hash", "top_k": 2, "hash_score": "sqrt_softplus"},
    {"router": "switch"},
    {"router": "switch", "top_k": 2},
    {"router": "locmoe"},
    {"router": "locmoe", "gate": "dense", "top_k": 2},
]


def all_expert_outputs(parameters, x):
    """(T,E,d): every expert (exact GELU) on every token, in one einsum."""
    before = np.einsum("td,edf->tef", x, parameters.w1) + parameters.b1
    return np.einsum("tef,efd->ted", before * special.ndtr(before), parameters.w2) + parameters.b2


def kept_by_running_count(expert, num_experts, capacity):
    """(T,k): the usual cumulative sum over one-hot assignments, first choices before second ones."""
    one_hot = np.eye(num_experts, dtype=int)[expert.T.ravel()]
    place = (one_hot.cumsum(axis=0) * one_hot).sum(axis=1)
    return (place <= capacity).reshape(expert.T.shape).T


@pytest.mark.parametrize("options", ROUTERS)
@pytest.mark.parametrize("capacity", [1, 2, 12])
def test_outputs_match_dense_masked_computation(make_case, options, capacity):
    case = make_case(ranks=3, tokens=12, experts=8, capacity=capacity, **options)
    result = moe_layer(*case)
    for r, tokens in enumerate(case.ranks):
        kept = kept_by_running_count(result.expert[r], 8, capacity)
        assert result.kept[r].tolist() == kept.tolist()
        picked = np.take_along_axis(all_expert_outputs(case.parameters, tokens.x), result.expert[r][:, :, None], axis=1)
        expected = ((result.weight[r] * kept)[:, :, None] * picked).sum(axis=1)
        np.testing.assert_allclose(result.outputs[r], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("router", ["hash", "switch", "locmoe"])
def test_one_expert_is_a_dense_ffn(make_case, router):
    case = make_case(router=router, experts=1, groups=1, ep=1)
    case.parameters.table[:] = 0
    result = moe_layer(*case)
    for tokens, output in zip(case.ranks, result.outputs):
        np.testing.assert_allclose(output, all_expert_outputs(case.parameters, tokens.x)[:, 0], rtol=1e-10)
    assert result.stats.local_fraction == 1.0 and result.stats.load_max_over_mean == 1.0


def test_ranks_do_not_mix_when_nothing_is_dropped(make_case):
    case = make_case(ranks=4, router="switch", top_k=2, capacity=24)
    together = [RankTokens(*(np.concatenate([getattr(t, name) for t in case.ranks]) for name in FIELDS))]
    apart, joint = moe_layer(*case), moe_layer(case.spec, case.parameters, together)
    # float64 rounds at 1e-16; a product sums in another order where it has other rows, or begins elsewhere in memory.
    np.testing.assert_allclose(np.concatenate(apart.outputs), joint.outputs[0], rtol=1e-12, atol=1e-12)


def test_capacity_counts_per_source_rank(make_case):
    case = make_case(ranks=3, tokens=4, capacity=2, groups=1)
    for tokens in case.ranks:
        tokens.x[:] = 0.0  # every token ties and wants expert 0
    result = moe_layer(*case)
    assert [kept[:, 0].tolist() for kept in result.kept] == [[True, True, False, False]] * 3
    assert result.stats.tokens_per_expert.tolist() == [12, 0, 0, 0]
    assert result.stats.drop_fraction == 0.5
    assert result.stats.load_max_over_mean == 4.0


def test_gate_weight_ranks_assignments_even_where_it_does_not_scale(make_case):
    case = make_case(router="switch", groups=1, capacity=1, drop_priority="weight", scale_by_gate=False)
    case.parameters.gate[:] = np.eye(4, 8)
    for tokens in case.ranks:
        tokens.x[:] = 0.0
        tokens.x[:, 0] = [1, 2, 6, 3, 5, 4]
    result = moe_layer(*case)
    assert result.kept[0][:, 0].tolist() == [False, False, True, False, False, False]
    assert (result.weight[0] == 1.0).all()


def test_dropped_token_gets_zero(make_case):
    case = make_case(router="hash", capacity=1, tokens=8)
    result = moe_layer(*case)
    dropped = ~result.kept[0][:, 0]
    assert dropped.any()
    assert (result.outputs[0][dropped] == 0.0).all() and (result.outputs[0][~dropped] != 0.0).any(axis=1).all()


def test_far_experts_have_slots_of_their_own(make_case):
    case = make_case(ranks=2, tokens=6, groups=1, capacity=3, far_capacity=1, source_nodes=(0, 1))
    for tokens in case.ranks:
        tokens.x[:] = 0.0  # every token ties and wants expert 0, on node 0
    assert [int(kept.sum()) for kept in moe_layer(*case).kept] == [3, 1]


def test_repicked_token_takes_the_output_and_the_weight_of_its_new_expert(make_case):
    case = make_case(router="switch", ranks=1, tokens=5, groups=1, capacity=2, overflow="repick")
    tokens = case.ranks[0]
    tokens.x[:], tokens.home[:] = tokens.x[0], [0, 0, 0, 2, 0]
    logits = case.parameters.gate @ tokens.x[0]
    probability = np.exp(logits) / np.exp(logits).sum()
    best = int(probability.argmax())
    # Interleaved or not, experts 0 and 1 are on node 0 with one group.
    local = {
        node: max((e for e in (2 * node, 2 * node + 1) if e != best), key=lambda e: probability[e]) for node in (0, 1)
    }
    result = moe_layer(*case)
    expected = [best, best, local[0], local[1], local[0]]
    assert result.kept[0].all() and result.expert[0][:, 0].tolist() == expected
    np.testing.assert_allclose(result.weight[0][:, 0], probability[expected], rtol=1e-12)
    outputs = all_expert_outputs(case.parameters, tokens.x)[np.arange(5), expected]
    np.testing.assert_allclose(result.outputs[0], probability[expected][:, None] * outputs, rtol=1e-10)
    assert result.stats.tokens_per_expert.tolist() == [5 * (e == best) for e in range(4)]  # as wanted
    assert result.stats.local_fraction == np.mean([e // 2 == home // 2 for e, home in zip(expected, tokens.home)])


def test_a_node_without_another_expert_cannot_repick(make_case):
    case = make_case(router="switch", ranks=1, tokens=5, groups=4, capacity=1, overflow="repick")  # one expert a group
    result = moe_layer(*case)
    dropping = moe_layer(*case.with_spec(overflow="drop"))
    assert result.kept[0].tolist() == dropping.kept[0].tolist() and not result.kept[0].all()


@pytest.mark.parametrize("options", [{"capacity": 1}, {"top_k": 2, "groups": 1, "scale_by_gate": False}], ids=str)
def test_shared_experts_add_the_same_whatever_is_routed(make_case, options):
    """To dropped tokens too, without a weight; and losses, choices and counts do not know of them."""
    case = make_case(router="switch", tokens=8, shared=3, **options)
    alone = case._replace(parameters=replace(case.parameters, shared=None))
    found, routed = moe_layer(*case), moe_layer(*alone)
    for tokens, with_shared, without in zip(case.ranks, found.outputs, routed.outputs):
        added = all_expert_outputs(case.parameters.shared, tokens.x).sum(1)
        np.testing.assert_allclose(with_shared, without + added, rtol=1e-10)
    assert found.aux_loss == routed.aux_loss and found.stats.drop_fraction == routed.stats.drop_fraction
    assert found.stats.tokens_per_expert.tolist() == routed.stats.tokens_per_expert.tolist()


def test_rank_without_tokens(make_case):
    case = make_case(router="switch", ranks=2)
    empty = RankTokens(*(getattr(case.ranks[0], name)[:0] for name in FIELDS))
    alone, with_empty = moe_layer(*case), moe_layer(case.spec, case.parameters, [case.ranks[0], empty, case.ranks[1]])
    assert with_empty.outputs[1].shape == (0, 8)
    assert with_empty.aux_loss == alone.aux_loss
    nothing = moe_layer(case.spec, case.parameters, [empty])
    assert (nothing.aux_loss, nothing.stats.drop_fraction, nothing.stats.load_max_over_mean) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("kind", ["interleaved", "node_grouped"])
def test_local_fraction_matches_the_topology_table(make_case, kind):
    case = make_case(seed=1, ranks=3, tokens=20, experts=8, capacity=3, router="switch", top_k=2, kind=kind)
    result = moe_layer(*case)
    table = local_experts_table(case.spec.layout, case.spec.placement)
    local = np.concatenate([table[t.home[:, None], e][k] for t, e, k in zip(case.ranks, result.expert, result.kept)])
    assert 0.0 < result.stats.drop_fraction < 1.0
    assert result.stats.local_fraction == local.mean()


def test_grap_equals_dense_gate_loaded_with_its_weights(make_case):
    grap = make_case(experts=8, top_k=2, seed=3)
    dense = grap.with_spec(gate="dense")
    dense.parameters.gate[:] = np.tile(grap_weights(4, 8), (2, 1))
    ours, theirs = moe_layer(*grap), moe_layer(*dense)
    np.testing.assert_allclose(np.stack(ours.outputs), np.stack(theirs.outputs), rtol=1e-12, atol=1e-12)  # see above
    assert (ours.aux_loss, ours.locality_loss) == (theirs.aux_loss, theirs.locality_loss)


class Objective(NamedTuple):
    output_gradients: list
    aux_weight: float
    locality_weight: float

    def value(self, result: LayerResult) -> float:
        through_outputs = sum(np.vdot(dy, y) for dy, y in zip(self.output_gradients, result.outputs))
        return through_outputs + self.aux_weight * result.aux_loss + self.locality_weight * result.locality_loss


def objective_for(case):
    rng = np.random.default_rng(17)
    return Objective([rng.normal(size=tokens.x.shape) for tokens in case.ranks], 1.7, -0.6)


def difference_quotients(case, objective, array):
    """Central differences for every element of `array`, which is one of the case's own arrays."""
    step, before = 1e-5, moe_layer(*case)
    quotients = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        value, results = array[index], []
        for shifted in (value + step, value - step):
            array[index] = shifted
            results.append(moe_layer(*case))
        array[index] = value
        for result in results:
            # The objective is smooth only while the choices stay as they are.
            assert all((a == b).all() for a, b in zip(result.expert + result.kept, before.expert + before.kept))
        quotients[index] = (objective.value(results[0]) - objective.value(results[1])) / (2.0 * step)
    return quotients


@pytest.mark.parametrize(
    "options",
    [
        {"router": "hash", "capacity": 2},
        {"router": "hash", "top_k": 2, "capacity": 3},
        {"router": "hash", "top_k": 2, "capacity": 3, "hash_score": "sqrt_softplus", "hash_scale": 1.5},
        {"router": "hash", "groups": 1, "top_k": 3, "hash_score": "softmax", "drop_priority": "weight"},
        {"router": "hash", "groups": 1, "top_k": 2, "hash_score": "sigmoid", "hash_renormalise": False},
        {"router": "switch", "statistics": "rank"},
        {"router": "switch", "top_k": 2, "capacity": 2, "drop_priority": "weight", "statistics": "node"},
        {"router": "locmoe", "statistics": "global"},
        {"router": "locmoe", "capacity": 1, "statistics": "node", "kind": "node_grouped"},
        {"router": "locmoe", "gate": "dense", "top_k": 2, "statistics": "rank", "activation": "gelu_tanh"},
        {"router": "locmoe", "gate": "dense", "scale_by_gate": False, "activation": "fast_gelu"},
        {"router": "switch", "groups": 1, "top_k": 3, "activation": "relu"},
        {"router": "switch", "experts": 8, "groups": 1, "top_k": 8, "capacity": 3, "shared": 2},
        {"router": "locmoe", "groups": 1, "normalise": "token", "statistics": "node"},
        {"router": "locmoe", "gate": "dense", "groups": 1, "top_k": 2, "normalise": "token", "ties": "unrectified"},
        {"router": "locmoe", "groups": 1, "rectify": False, "value_scale": 3.0},
        {"router": "locmoe", "groups": 1, "domains": 3, "divergence": 0.9},
        {"router": "locmoe", "gate": "dense", "groups": 1, "domains": 2, "divergence": 0.9, "statistics": "node"},
        {"router": "locmoe", "gate": "dense", "rectify": False, "normalise": "token", "value_scale": 0.5, "groups": 1},
        {
            "router": "switch",
            "groups": 1,
            "top_k": 2,
            "capacity": 2,
            "far_capacity": 1,
            "source_nodes": (0, 1),
            "overflow": "repick",
        },
    ],
    ids=str,
)
def test_gradients_match_central_differences(make_case, options):
    case = make_case(tokens=4, hidden=4, inner=3, alpha=0.8, mu=0.9, seed=5, **options)
    objective = objective_for(case)
    gradients = moe_layer_gradients(*case, *objective)
    pairs = [(case.ranks[r].x, gradients.x[r]) for r in range(2)]
    pairs += [(getattr(case.parameters, name), getattr(gradients, name)) for name in ("w1", "b1", "w2", "b2")]
    if gradients.gate is not None:
        pairs.append((case.parameters.gate, gradients.gate))
    if gradients.shared is not None:
        pairs += [(getattr(case.parameters.shared, name), getattr(gradients.shared, name)) for name in SHARED]
    for array, gradient in pairs:
        # Truncation is of order step^2 = 1e-10, rounding of values up to 100 leaves 100 * 1e-16 / step = 1e-9.
        np.testing.assert_allclose(gradient, difference_quotients(case, objective, array), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "options, learned",
    [
        ({"router": "hash"}, False),
        ({"router": "hash", "hash_score": "sigmoid"}, True),
        ({"router": "locmoe"}, False),
        ({"router": "switch"}, True),
        ({"router": "locmoe", "gate": "dense"}, True),
    ],
)
def test_gate_gradient_exists_where_the_gate_is_learned(make_case, options, learned):
    case = make_case(**options)
    assert (moe_layer_gradients(*case, *objective_for(case)).gate is not None) == learned


def test_expert_without_tokens_has_zero_gradients(make_case):
    case = make_case(groups=1)
    for tokens in case.ranks:
        tokens.x[:] = 0.0  # all go to expert 0
    gradients = moe_layer_gradients(*case, *objective_for(case))
    assert (gradients.b2[0] != 0.0).all()
    for name in ("w1", "b1", "w2", "b2"):
        assert (getattr(gradients, name)[1:] == 0.0).all()


def test_token_that_lost_its_slot_gets_gradients_from_losses_only(make_case):
    case = make_case(router="switch", groups=1, capacity=1, tokens=8)
    dropped = ~moe_layer(*case).kept[0][:, 0]
    output_gradients = objective_for(case).output_gradients
    without_losses = moe_layer_gradients(*case, output_gradients, aux_weight=0.0, locality_weight=0.0)
    with_losses = moe_layer_gradients(*case, output_gradients, aux_weight=1.0, locality_weight=0.0)
    assert dropped.any() and (without_losses.x[0][dropped] == 0.0).all()
    assert (with_losses.x[0][dropped] != 0.0).all()


def test_tied_scores_pass_nothing_back_through_relu(make_case):
    case = make_case(router="locmoe", gate="dense")
    for tokens in case.ranks:
        tokens.x[:] = 0.0
    assert (moe_layer_gradients(*case, *objective_for(case)).gate == 0.0).all()


def test_parameter_gradients_are_summed_over_ranks(make_case):
    case = make_case(router="switch", ranks=3)
    output_gradients = objective_for(case).output_gradients
    whole = moe_layer_gradients(*case, output_gradients, 0.0, 0.0)
    parts = [
        moe_layer_gradients(case.spec, case.parameters, [tokens], [dy], 0.0, 0.0)
        for tokens, dy in zip(case.ranks, output_gradients)
    ]
    for name in ("gate", "w1", "b1", "w2", "b2"):
        # Equal but for the order of summation.
        expected = sum(getattr(part, name) for part in parts)
        np.testing.assert_allclose(getattr(whole, name), expected, rtol=1e-10, atol=1e-12)
