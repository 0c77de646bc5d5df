from dataclasses import replace

import numpy as np
import pytest
from scipy import special, stats

from locmoe_ops.errors import InputError
from locmoe_ops.reference.routing import combine_weight, gate_gradients, grap_weights, route


def test_grap_weights_average_blocks_of_features():
    assert grap_weights(2, 6).tolist() == [[1 / 3, 1 / 3, 1 / 3, 0, 0, 0], [0, 0, 0, 1 / 3, 1 / 3, 1 / 3]]


def test_grap_weights_are_orthogonal_and_give_block_means():
    weights, x = grap_weights(4, 32), np.random.default_rng(0).normal(size=32)
    # Rows of norm sqrt(n/d); equal to rounding because the sums run in another order.
    np.testing.assert_allclose(weights @ weights.T, np.eye(4) * 4 / 32, rtol=1e-15)
    np.testing.assert_allclose(weights @ x, x.reshape(4, 8).mean(axis=1), rtol=1e-12)


def test_grap_needs_hidden_size_divisible_by_experts():
    with pytest.raises(InputError, match="hidden size 10 is not divisible by the 4 experts"):
        grap_weights(4, 10)


def test_hash_router_looks_up_token_id_in_the_table_of_its_group(make_case):
    spec, parameters, ranks = make_case(router="hash")
    routing = route(spec, parameters, ranks[0])
    tokens = ranks[0]
    expected = 2 * tokens.domain + parameters.table[tokens.domain, tokens.token_ids]
    assert routing.expert[:, 0].tolist() == expected.tolist()
    assert (routing.gate_weight == 1.0).all()


@pytest.mark.parametrize(
    "options",
    [
        {"router": "switch"},
        {"router": "locmoe", "gate": "dense"},
        {"router": "locmoe", "gate": "grap"},
    ],
)
def test_probabilities_are_a_softmax_over_the_group(make_case, options):
    case = make_case(experts=8, tokens=20, top_k=2, **options)
    tokens = case.ranks[0]
    if options.get("gate") == "grap":
        values = np.tile(tokens.x.reshape(20, 4, 2).mean(axis=2), (1, 2))
    else:
        values = tokens.x @ case.parameters.gate.T
    scores = np.maximum(values, 0.0) if options["router"] == "locmoe" else values
    in_group = scores.reshape(20, 2, 4)[np.arange(20), tokens.domain]
    expected = special.softmax(in_group, axis=1)
    routing = route(case.spec, case.parameters, tokens)
    np.testing.assert_allclose(routing.probability, expected, rtol=1e-12)
    best = np.sort(expected, axis=1)[:, ::-1][:, :2]
    np.testing.assert_allclose(routing.gate_weight, best, rtol=1e-12)
    assert (routing.expert // 4 == tokens.domain[:, None]).all()
    assert (routing.expert[:, 0] != routing.expert[:, 1]).all()


@pytest.mark.parametrize(
    "options, scores",
    [
        ({"rectify": False}, lambda values: values),
        ({"value_scale": 4.0}, lambda values: 4.0 * values * (values > 0)),
        ({"rectify": False, "value_scale": 4.0}, lambda values: 4.0 * values),
        ({"normalise": "token", "rectify": False}, lambda values: stats.zscore(values, 1)),
        ({"normalise": "token"}, lambda values: np.maximum(stats.zscore(values, 1), 0.0)),
        # of two values each is one deviation off their mean, whatever they are
        (
            {"normalise": "token", "groups": 2, "value_scale": 3.0},
            lambda values: 3.0 * (values > values.mean(1)[:, None]),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_enters_the_softmax_by_hand(make_case, options, scores):
    """Block means of a group's experts: no noise, no centring."""
    options = {"groups": 1, **options}
    case = make_case(experts=4, tokens=20, router="locmoe", **options)
    x = case.ranks[0].x * 50.0  # a variance far above what keeps the quotient from 0 / 0
    tokens = replace(case.ranks[0], x=x)
    per_group = 4 // options["groups"]
    values = x.reshape(20, per_group, -1).mean(axis=2)
    found = route(case.spec, case.parameters, tokens).probability
    np.testing.assert_allclose(found, special.softmax(scores(values), axis=1), rtol=0, atol=1e-6)


def test_centring_and_noise_are_added_to_the_values(make_case):
    """Less a mean of the expert's own, then noise, then the ReLU."""
    case = make_case(experts=4, groups=2, tokens=20, router="locmoe")
    rng = np.random.default_rng(3)
    mean, noise = rng.normal(size=4), rng.normal(size=(20, 2))
    tokens = replace(case.ranks[0], noise=noise)
    values = tokens.x.reshape(20, 2, -1).mean(axis=2) - mean.reshape(2, 2)[tokens.domain] + noise
    found = route(case.spec, replace(case.parameters, value_mean=mean), tokens).probability
    np.testing.assert_allclose(found, special.softmax(np.maximum(values, 0.0), axis=1), rtol=1e-12)


@pytest.mark.parametrize("router", ["switch", "locmoe"])
def test_ties_go_to_lower_indices(make_case, router):
    case = make_case(router=router, experts=8, top_k=3)
    case.ranks[0].x[:] = 0.0
    routing = route(case.spec, case.parameters, case.ranks[0])
    first = 4 * case.ranks[0].domain[:, None]
    assert (routing.expert == first + [[0, 1, 2]]).all()
    assert (routing.gate_weight == 0.25).all()


def test_negative_grap_values_tie_at_zero(make_case):
    case = make_case(groups=1)
    case.ranks[0].x[:] = [-1, -1, -9, -9, -2, -2, -3, -3]
    routing = route(case.spec, case.parameters, case.ranks[0])
    assert (routing.expert == 0).all() and (routing.probability == 0.25).all()


def test_unscaled_outputs_have_weight_one_but_keep_their_gate_weight(make_case):
    case = make_case(router="switch", scale_by_gate=False)
    routing = route(case.spec, case.parameters, case.ranks[0])
    assert (combine_weight(case.spec, routing) == 1.0).all()
    assert (routing.gate_weight < 1.0).all()


def test_gate_gradient_of_two_experts_is_the_logistic_slope(make_case):
    case = make_case(router="switch", experts=4, groups=2, tokens=1)
    tokens = case.ranks[0]
    routing = route(case.spec, case.parameters, tokens)
    first = 2 * int(tokens.domain[0])
    # p_0 = sigmoid(z_0 - z_1): dp_0/dz_0 = p_0 p_1 = -dp_0/dz_1.
    slope = routing.probability[0, 0] * routing.probability[0, 1]
    x_gradient, gate = gate_gradients(case.spec, case.parameters, tokens, routing, np.array([[1.0, 0.0]]))
    expected = np.zeros((4, 8))
    expected[first], expected[first + 1] = slope * tokens.x[0], -slope * tokens.x[0]
    np.testing.assert_allclose(gate, expected, rtol=1e-12)
    difference = case.parameters.gate[first] - case.parameters.gate[first + 1]
    np.testing.assert_allclose(x_gradient[0], slope * difference, rtol=1e-12)
