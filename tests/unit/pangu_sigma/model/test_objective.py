import numpy as np
import pytest


def test_objective_and_sums_match_numpy(any_case, numpy_model):
    batch, double = any_case.batch(), any_case.double(training=True)
    found = any_case.evaluate(batch, loss_scale=3.0)
    # Sums of a few dozen float32 numbers, each right to a few units of its last place (6e-8).
    assert found.value == pytest.approx(double.objective(batch, any_case.nominal_tokens, 3.0), rel=1e-5)
    rounded, counted = numpy_model.split_sums(double.losses(batch))
    for name, expected in rounded.items():
        # The locality loss is a small difference of terms of order 10.
        assert found.sums[name] == pytest.approx(expected, rel=1e-5, abs=1e-5), name
    for name, expected in counted.items():
        np.testing.assert_array_equal(
            found.sums[name], expected if expected.size else np.zeros_like(found.sums[name]), name
        )


def test_gradients_match_finite_differences(any_case):
    """Along one random direction per parameter: a wrong part of a gradient, however small the part, turns its slope."""
    batch, step = any_case.batch(), 1e-7
    double, rng = any_case.double(training=True), np.random.default_rng(0)
    for name, gradient in any_case.evaluate(batch).gradients.items():
        direction = rng.standard_normal(gradient.shape)
        ahead = double.moved(name, step * direction).objective(batch, any_case.nominal_tokens)
        behind = double.moved(name, -step * direction).objective(batch, any_case.nominal_tokens)
        slope = (ahead - behind) / (2.0 * step)
        # The slope is of the order of the gradient's norm. float32 leaves about 3e-6 of that; the difference, of two
        # numbers near 10, errs by 1e-15 / step = 1e-8. The step is that small lest a ReLU changes side.
        assert abs(slope - np.sum(gradient * direction)) < 3e-5 * np.linalg.norm(gradient) + 1e-7, name
        assert np.linalg.norm(gradient) > 1e-3, f"{name} takes no part in the test"


def test_gradients_scale_with_the_loss_scale(case):
    network = case("dense")
    once, scaled = (network.evaluate(network.batch(), loss_scale=scale) for scale in (1.0, 1024.0))
    for name, gradient in once.gradients.items():
        # A power of two only moves exponents.
        np.testing.assert_array_equal(scaled.gradients[name], 1024.0 * gradient, name)


def test_masked_tokens_count_for_nothing(case):
    network = case("dense")
    batch = network.batch()
    other = {**batch, "targets": np.where(batch["loss_mask"] > 0, batch["targets"], 0).astype(np.int32)}
    assert (other["targets"] != batch["targets"]).any()
    first, second = network.evaluate(batch), network.evaluate(other)
    assert first.value == second.value
    for name, gradient in first.gradients.items():
        np.testing.assert_array_equal(second.gradients[name], gradient, name)


def test_a_batch_without_unmasked_tokens_is_worth_zero(case):
    network = case("switch")
    batch = network.batch()
    found = network.evaluate({**batch, "loss_mask": np.zeros_like(batch["loss_mask"])})
    assert (found.value, float(found.sums["tokens"]), float(found.sums["aux"])) == (0.0, 0.0, 0.0)
    assert all((gradient == 0.0).all() for gradient in found.gradients.values())
    assert found.sums["assigned"].sum() > 0  # routing statistics still count every token


def test_fp16_stays_close_with_gradients_in_float32(case):
    network = case("hash").with_precision("fp16")
    batch, reference = network.batch(), case("hash")
    found, expected = network.evaluate(batch), reference.evaluate(batch)
    # float16 rounds at 5e-4; some ten roundings one after another.
    assert found.value == pytest.approx(expected.value, rel=0.01)
    for name, gradient in found.gradients.items():
        assert gradient.dtype == np.float32, name
        assert np.linalg.norm(gradient - expected.gradients[name]) < 0.05 * np.linalg.norm(expected.gradients[name]), (
            name
        )
    assert {parameter.asnumpy().dtype for parameter in network.network.trainable_params()} == {np.dtype(np.float32)}
