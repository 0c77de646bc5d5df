import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import RoutingShape
from locmoe_ops.routers.gates import CodeGate, DenseGate, GrAPGate, draw_codes, grap_weights

pytestmark = pytest.mark.usefixtures("graph_mode")

TOKENS = 37


def tokens(hidden, seed=0):
    return np.random.default_rng(seed).standard_normal((TOKENS, hidden)).astype(np.float32)


def group_mask(groups, seed=0):
    return np.eye(groups, dtype=np.float32)[np.random.default_rng(seed).integers(0, groups, TOKENS)]


def dense_gate(weight, groups):
    gate = DenseGate(RoutingShape(weight.shape[1], len(weight), groups))
    gate.weight.set_data(Tensor(weight))
    return gate


def test_grap_weights_average_one_block_each():
    assert grap_weights(2, 6).tolist() == [[np.float32(1 / 3)] * 3 + [0] * 3, [0] * 3 + [np.float32(1 / 3)] * 3]


@pytest.mark.parametrize("experts, hidden", [(1, 8), (4, 4), (4, 24), (7, 21)])
def test_grap_rows_are_orthogonal_and_sum_to_one(experts, hidden):
    weights = grap_weights(experts, hidden).astype(np.float64)
    np.testing.assert_allclose(weights @ weights.T, np.eye(experts) * experts / hidden, rtol=1e-6)  # 1/3 in float32
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)


def test_grap_refuses_experts_that_do_not_divide_the_hidden_size():
    with pytest.raises(InputError, match="5 experts of a group do not divide hidden size 24; expected a divisor"):
        grap_weights(5, 24)


@pytest.mark.parametrize("experts, groups, hidden", [(8, 1, 24), (12, 3, 24), (4, 1, 64)])
def test_grap_gate_is_grouped_average_pooling(pullback, experts, groups, hidden):
    x, per_group = tokens(hidden), experts // groups
    dy = np.random.default_rng(1).standard_normal((TOKENS, per_group)).astype(np.float32)
    (found,), (gradient, _), _ = pullback(
        GrAPGate(RoutingShape(hidden, experts, groups)), [x, group_mask(groups)], [dy]
    )
    blocks = x.astype(np.float64).reshape(TOKENS, per_group, -1)
    # Float32 sums of at most 16 numbers of order 1, with weights rounded to 6e-8.
    np.testing.assert_allclose(found, blocks.mean(-1), rtol=0, atol=5e-7)
    np.testing.assert_allclose(gradient, np.repeat(dy, hidden // per_group, 1) * per_group / hidden, rtol=1e-6)


@pytest.mark.parametrize("experts, hidden", [(4, 24), (8, 24), (16, 256), (6, 96)])
def test_grap_gate_equals_the_dense_gate_with_its_weights_to_the_last_bit(experts, hidden):
    x, mask = Tensor(tokens(hidden)), Tensor(group_mask(1))
    grap = GrAPGate(RoutingShape(hidden, experts))(x, mask).asnumpy()
    dense = dense_gate(grap_weights(experts, hidden), 1)(x, mask).asnumpy()
    assert grap.tobytes() == dense.tobytes()


@pytest.mark.parametrize("groups", [1, 3])
def test_dense_gate_takes_the_rows_of_the_token_s_group(pullback, groups):
    x, mask = tokens(24), group_mask(groups)
    weight = np.random.default_rng(1).standard_normal((4 * groups, 24)).astype(np.float32)
    dy = np.random.default_rng(2).standard_normal((TOKENS, 4)).astype(np.float32)
    gate = dense_gate(weight, groups)
    (found,), (x_gradient, _), (gradient,) = pullback(gate, [x, mask], [dy], [gate.weight])
    expected, expected_x, expected_gradient = np.zeros((TOKENS, 4)), np.zeros(x.shape), np.zeros(weight.shape)
    for t in range(TOKENS):
        rows = slice(4 * mask[t].argmax(), 4 * mask[t].argmax() + 4)
        expected[t] = weight[rows].astype(np.float64) @ x[t]
        expected_x[t] = dy[t].astype(np.float64) @ weight[rows]
        expected_gradient[rows] += np.outer(dy[t], x[t].astype(np.float64))
    for array, wanted in ((found, expected), (x_gradient, expected_x), (gradient, expected_gradient)):
        np.testing.assert_allclose(array, wanted, rtol=0, atol=5e-6)  # float32 sums of up to 37 products of order 1


def test_dense_gate_starts_the_same_for_one_seed():
    gates = [DenseGate(RoutingShape(256, 8)) for _ in range(3)]
    for gate, seed in zip(gates, (5, 5, 6)):
        gate.initialise(seed, std=0.02)
    first, second, other = [gate.weight.asnumpy() for gate in gates]
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    assert abs(first.std() / 0.02 - 1) < 0.08  # 2048 draws know their deviation to 1.6 %: five of these


def test_a_code_gate_gives_the_code_of_an_id_in_the_tokens_group():
    codes = tokens(3 * 4 * 5)[0].reshape(3, 4, 5)  # three groups, four ids, five experts
    rng = np.random.default_rng(1)
    ids, group = (rng.integers(0, high, TOKENS).astype(np.int32) for high in (4, 3))
    found = CodeGate(codes)(Tensor(ids), Tensor(group)).asnumpy()
    assert found.tobytes() == np.stack([codes[g, i] for g, i in zip(group, ids)]).tobytes()


def test_codes_are_directions_of_the_spread_of_block_means():
    """400 x 500 codes of 4 coordinates: squares and products have errors of about 1 / sqrt(200,000) = 0.0022; five of
    them. Mirrors change no square and no product; a mean they do change.
    """
    winners = np.random.default_rng(3).integers(0, 4, (400, 500), np.int32)
    codes = draw_codes(winners, 4, 64, (7, 1)) / np.sqrt(4 / 64)
    assert np.array_equal(codes.argmax(-1), winners) and codes.max(-1).min() > 0
    flat = codes.reshape(-1, 4)
    np.testing.assert_allclose(
        flat.T @ flat / len(flat), np.eye(4), atol=0.0112 * np.sqrt(2)
    )  # a square has twice a product's variance
    assert not np.array_equal(draw_codes(winners, 4, 64, (7, 1)), draw_codes(winners, 4, 64, (7, 2)))
