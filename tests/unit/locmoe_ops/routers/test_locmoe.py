"""LocMoE's router: its gates, what they are given, losses and undecided tokens."""

import numpy as np
import pytest

from mindspore import Tensor, nn

from helpers.routers import HIDDEN, OUTPUTS, TOKENS, Opened, batch, context_of, expected_choice, run
from locmoe_ops.errors import InputError
from locmoe_ops.random import SeededUniform
from locmoe_ops.routers.base import RoutingShape, make_router
from locmoe_ops.routers.gated import set_locality_loss_weight
from locmoe_ops.routers.gates import grap_weights
from locmoe_ops.routers.locmoe import set_context_weight

pytestmark = pytest.mark.usefixtures("graph_mode")


def locmoe(shape, gate, **options):
    return make_router(context_of("locmoe", shape, gate=gate, **options))


@pytest.mark.parametrize("groups, experts", [(1, 8), (3, 12)])
@pytest.mark.parametrize("top_k", [1, 2])
def test_grap_router_equals_the_dense_one_with_its_weights(groups, experts, top_k):
    shape = RoutingShape(HIDDEN, experts, groups, top_k)
    grap, dense = locmoe(shape, "grap"), locmoe(shape, "dense")
    dense.gate.weight.set_data(Tensor(np.tile(grap_weights(experts // groups, HIDDEN), (groups, 1))))
    inputs = batch(groups)
    found, expected = run(grap, inputs), run(dense, inputs)
    assert np.array_equal(found["expert"], expected["expert"])
    for name in OUTPUTS[1:]:
        if groups == 1:
            assert found[name].tobytes() == expected[name].tobytes(), name
        else:
            # The dense gate's product is that of all groups, and where its shape differs a kernel may add up in another
            # order: sums of 6 products of order 1 then differ in their last bits.
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6, err_msg=name)


def test_weight_of_a_loss_scales_it_and_its_gradient(pullback):
    inputs, shape = batch(3), RoutingShape(HIDDEN, 12, 3)
    for loss, option in (("aux_loss", "aux_loss_weight"), ("locality_loss", "locality_loss_weight")):
        cotangents = [
            np.zeros((TOKENS, 1), np.int32),
            np.zeros((TOKENS, 1), np.float32),
            *(np.float32(name == loss) for name in OUTPUTS[2:]),
        ]
        index = OUTPUTS.index(loss)
        once, (gradient,), _ = pullback(Opened(locmoe(shape, "grap", **{option: 1.0})), inputs, cotangents)
        twice, (double,), _ = pullback(Opened(locmoe(shape, "grap", **{option: 2.0})), inputs, cotangents)
        assert twice[index] == 2 * once[index] > 0 and np.array_equal(double, 2 * gradient) and gradient.any()


def test_another_weight_of_the_locality_loss_needs_no_other_graph():
    router = locmoe(RoutingShape(HIDDEN, 12, 3), "grap", locality_loss_weight=0.5, locality_loss_changes=True)
    cell, inputs = Opened(router), [Tensor(array) for array in batch(3)]
    index, found = OUTPUTS.index("locality_loss"), []
    for weight in (None, 1.0, 0.0, 0.25):
        if weight is not None:
            set_locality_loss_weight(cell, weight)
        found.append(float(cell(*inputs)[index].asnumpy()))
    assert found[0] > 0 and found == [found[0], 2 * found[0], 0.0, found[0] / 2]  # powers of 2 are exact
    assert len(cell.compile_cache) == 1


def test_a_weight_that_cannot_change_is_not_passed_over():
    with pytest.raises(InputError, match="moe.router.locality_loss.initial_weight"):
        set_locality_loss_weight(locmoe(RoutingShape(HIDDEN, 12, 3), "grap"), 0.5)


class WithWords(nn.Cell):
    def __init__(self, router):
        super().__init__()
        self.router = router

    def construct(self, x, word, group, home, seed):
        found = self.router(x, {"ids": group, "group": group, "home": home, "seed": seed, "word": word})
        return found["expert"], found["weight"], found["aux_loss"], found["locality_loss"]


def test_a_gate_on_words_is_the_gate_on_their_standardised_vectors(pullback):
    """Choices, weights and losses; and the gradient, through the closed form of standardisation's."""
    inputs, shape = batch(3), RoutingShape(HIDDEN, 12, 3)
    word = np.random.default_rng(5).standard_normal((TOKENS, HIDDEN)) * 0.06 + 0.01
    deviation = word.std(1, keepdims=True)
    rows = (word - word.mean(1, keepdims=True)) / deviation
    cotangents = [
        np.zeros((TOKENS, 1), np.int32),
        np.linspace(-1, 1, TOKENS, dtype=np.float32)[:, None],
        np.float32(1),
        np.float32(1),
    ]
    expected, (gradient,), _ = pullback(
        Opened(locmoe(shape, "grap")), [rows.astype(np.float32), *inputs[1:]], cotangents
    )
    cell = WithWords(locmoe(shape, "grap", gate_input="word"))
    found, (of_x, of_word), _ = pullback(cell, [inputs[0], word.astype(np.float32), *inputs[1:]], cotangents)
    for array, other in zip(found, expected):
        np.testing.assert_allclose(array, other, rtol=0, atol=1e-6)  # float32, values of order 1
    through = (gradient - gradient.mean(1, keepdims=True) - rows * (gradient * rows).mean(1, keepdims=True)) / deviation
    np.testing.assert_allclose(of_word, through, rtol=0, atol=1e-5 * np.abs(through).max())
    assert not of_x.any() and of_word.any()


class WithIds(nn.Cell):
    def __init__(self, router):
        super().__init__()
        self.router = router

    def construct(self, x, ids, group, home, seed):
        found = self.router(x, {"ids": ids, "group": group, "home": home, "seed": seed})
        return found["expert"], found["weight"], found["gate_input"]


def test_a_gate_on_codes_follows_the_ids_and_nothing_else(pullback):
    """The gate's values are the codes: choice and weight as in Eq. 1-3; no gradient into the layer's input."""
    inputs, shape = batch(3), RoutingShape(HIDDEN, 12, 3)
    rng = np.random.default_rng(5)
    codes, ids = rng.standard_normal((3, 50, 4)).astype(np.float32), rng.integers(0, 50, TOKENS).astype(np.int32)
    cotangents = [np.zeros((TOKENS, 1), np.int32), np.ones((TOKENS, 1), np.float32), np.ones((TOKENS, 4), np.float32)]
    cell = WithIds(locmoe(shape, "grap", gate_input="code", vocab_size=50))
    cell.router.gate.codes.set_data(Tensor(codes))
    (expert, weight, gate_input), (of_x, *_), _ = pullback(cell, [inputs[0], ids, *inputs[1:]], cotangents)
    values = codes[inputs[1], ids]
    choice, probability = expected_choice(np.maximum(values.astype(np.float64), 0), 1)
    assert (
        np.array_equal(expert, choice + 4 * inputs[1][:, None])
        and np.array_equal(gate_input, values)
        and not of_x.any()
    )
    np.testing.assert_allclose(weight, probability, rtol=0, atol=1e-6)  # float32, values of order 1


def test_a_context_is_added_to_codes_with_a_weight_that_needs_no_other_graph():
    """Codes plus the weighted means of blocks, then Eq. 1-3. Weight 0 gives the routes of codes alone."""
    inputs, shape = batch(3), RoutingShape(HIDDEN, 12, 3)
    rng = np.random.default_rng(5)
    codes, ids = rng.standard_normal((3, 50, 4)).astype(np.float32), rng.integers(0, 50, TOKENS).astype(np.int32)
    cell = WithIds(locmoe(shape, "grap", gate_input="code", vocab_size=50, context_weight=1.0))
    cell.router.gate.codes.set_data(Tensor(codes))
    means = inputs[0].reshape(TOKENS, 4, HIDDEN // 4).mean(2)  # Eq. 4
    given, moved = [Tensor(array) for array in (inputs[0], ids, *inputs[1:])], []
    for context_weight in (1.0, 0.0, 0.3):
        set_context_weight(cell, context_weight)
        expert, weight, _ = (output.asnumpy() for output in cell(*given))
        values = codes[inputs[1], ids].astype(np.float64) + context_weight * means
        choice, probability = expected_choice(np.maximum(values, 0), 1)
        assert np.array_equal(expert, choice + 4 * inputs[1][:, None])
        np.testing.assert_allclose(weight, probability, rtol=0, atol=1e-6)  # float32, values of order 1
        moved.append((choice != expected_choice(np.maximum(codes[inputs[1], ids], 0), 1)[0]).mean())
    assert moved[0] > moved[2] > moved[1] == 0
    assert len(cell.compile_cache) == 1


def test_an_order_of_features_is_the_same_as_reordered_features():
    inputs, shape = batch(1), RoutingShape(HIDDEN, 8)
    order = np.random.default_rng((6, 2)).permutation(HIDDEN)  # of the run's seed and the layer
    found = run(locmoe(shape, "grap", blocks="by_layer", seed=6, layer=2), inputs)
    expected = run(locmoe(shape, "grap"), [inputs[0][:, order], *inputs[1:]])
    for name in OUTPUTS:
        np.testing.assert_allclose(
            found[name], expected[name], rtol=0, atol=1e-6
        )  # float32 sums of 3 features in another order


# ---- undecided tokens


class WithUndecided(nn.Cell):
    def __init__(self, router):
        super().__init__()
        self.router = router

    def construct(self, x, group, home, seed):
        found = self.router(x, {"ids": group, "group": group, "home": home, "seed": seed})
        return found["expert"], found["weight"], found["aux_loss"], found["locality_loss"], found["undecided"]


# Block means of a group of four experts, and how many of them are above 0.
TABLE = np.array([[-4, -1, -2, -3], [0, 0, 0, 0], [-4, -1, 2, -3], [1, 3, -2, -3], [2, 1, 3, 4]], np.float32)
ABOVE = np.array([0, 0, 1, 2, 4])


def of_table():
    """Router inputs whose GrAP values are TABLE's rows."""
    x = np.repeat(TABLE, HIDDEN // 4, axis=1)
    return [x, *(np.zeros(len(x), np.int32) for _ in range(3))]


@pytest.mark.parametrize("rule", ["first", "unrectified"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_undecided_tokens_by_hand(pullback, rule, top_k):
    """Which tokens are undecided, their experts and weights, and whether a gradient of the weights reaches them."""
    router = locmoe(RoutingShape(HIDDEN, 4, 1, top_k), "grap", ties=rule)
    inputs = of_table()
    weights = np.zeros((len(TABLE), top_k), np.float32)
    weights[:, 0] = 1.0
    cotangents = [weights.astype(np.int32) * 0, weights, np.float32(0), np.float32(0), np.zeros(len(TABLE), np.float32)]
    (expert, weight, _, _, undecided), (gradient,), _ = pullback(WithUndecided(router), inputs, cotangents)
    assert undecided.tolist() == (ABOVE < top_k).tolist()
    rectified = np.maximum(TABLE, 0.0)
    scores = np.where((ABOVE < top_k)[:, None], TABLE, rectified) if rule == "unrectified" else rectified
    choice, probability = expected_choice(scores.astype(np.float64), top_k)
    assert np.array_equal(expert, choice)
    np.testing.assert_allclose(weight, probability, rtol=0, atol=1e-6)  # float32, values of order 1
    assert expert[0, 0] == (1 if rule == "unrectified" else 0)
    assert gradient[0].any() == (rule == "unrectified") and gradient[2:].any(1).all()


def noisy(**options):
    return locmoe(RoutingShape(HIDDEN, 12, 3), "grap", ties="noise", noise_scale=0.8, **options).set_train()


def test_a_token_has_the_same_noise_wherever_it_sits():
    """Whatever other tokens there are and in which order: so it is at any parallel degree. Another layer's is
    another.
    """
    inputs = batch(3)
    whole = run(noisy(), inputs)
    order = np.random.default_rng(1).permutation(TOKENS)
    moved = run(noisy(), [array[order] for array in inputs])
    part = run(noisy(), [array[30:] for array in inputs])
    for found, places in ((moved, order), (part, np.arange(30, TOKENS))):
        assert np.array_equal(found["expert"], whole["expert"][places])
        # Kernels round products of another number of rows otherwise, by a last place of float32.
        np.testing.assert_allclose(found["weight"], whole["weight"][places], rtol=0, atol=2e-7)
    for other in (
        run(noisy(layer=1), inputs),
        run(noisy(), [*inputs[:3], inputs[3] ^ 1]),
    ):  # another layer; another step
        assert (other["weight"] != whole["weight"]).mean() > 0.5


def test_noise_is_on_the_values_before_the_relu_and_in_training_alone():
    inputs = batch(3)
    uniform = SeededUniform(4, 5)(Tensor(inputs[3])).asnumpy().astype(np.float64)
    values = inputs[0].astype(np.float64).reshape(TOKENS, 4, -1).mean(2)
    for training, noise in ((True, 0.8 * (2.0 * uniform - 1.0)), (False, 0.0)):
        found = run(noisy().set_train(training), inputs)
        expert, probability = expected_choice(np.maximum(values + noise, 0.0), 1)
        assert np.array_equal(found["expert"], expert + 4 * inputs[1][:, None])
        np.testing.assert_allclose(found["weight"], probability, rtol=0, atol=1e-6)  # float32, values of order 1
    assert np.abs(2.0 * uniform - 1.0).max() > 0.95 and abs((2.0 * uniform - 1.0).mean()) < 0.15


def test_the_scale_of_noise_follows_the_spread_of_block_means():
    """Null is the standard deviation that a GrAP gate's value has for standardised features: the root of n / d."""
    for given, expected in ((None, (4 / HIDDEN) ** 0.5), (0.25, 0.25)):
        router = locmoe(RoutingShape(HIDDEN, 12, 3), "grap", ties="noise", noise_scale=given)
        assert router.noise_scale == pytest.approx(expected)
