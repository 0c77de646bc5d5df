import numpy as np
import pytest

from mindspore import Tensor, dtype

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.tensor_parallel import slice_of
from locmoe_ops.topology import Topology
from pangu_sigma.config.schema_run import LossScaleConfig, OptimizerConfig
from pangu_sigma.model.inputs import BATCH_FIELDS
from pangu_sigma.model.objective import Objective
from pangu_sigma.model.parameter_groups import ordered_parameters
from pangu_sigma.train.evaluation import EvaluationStep
from pangu_sigma.train.flat import gradient_exchange
from pangu_sigma.train.schedule import LossScale
from pangu_sigma.train.statistics import Statistics
from pangu_sigma.train.step import (
    Accumulators,
    ApplyStep,
    BatchGradients,
    MicroStep,
    WholeStep,
)
from pangu_sigma.train.update import Update, read_outputs

NOMINAL = 50.0


def new_update(parameters, statistics_size, loss_scale, options):
    alone = create_collectives("local", Topology(1, 1), 0)
    exchange = gradient_exchange(parameters, statistics_size, alone, options)
    return Update(exchange, loss_scale, options, int(NOMINAL))


def scalars(outputs):
    """Gradient norm, scale used, steps skipped; the compiled step updates the experts, so nothing is for the host."""
    assert outputs.host_scalars is None and not outputs.expert_gradients
    return [float(x.asnumpy()) for x in (outputs.grad_norm, outputs.loss_scale, outputs.skipped_steps)]


# ---- optimizer step


class Bench:
    """ApplyStep over the small parameters, compiled once; `reset` brings it back to its beginning."""

    def __init__(self, parameters, clip_norm):
        self.options = OptimizerConfig(clip_norm=clip_norm)
        self.parameters = parameters
        self.accumulators = Accumulators(parameters, 6)
        self.loss_scale = LossScale(LossScaleConfig(initial=1024.0, growth_interval=2))
        update = new_update(parameters, 6, self.loss_scale, self.options)
        self.apply = ApplyStep(self.accumulators, update)
        self.adam = update.adam
        self.state = [*parameters, *self.adam.first, *self.adam.second, self.adam.updates]
        self.initial = [parameter.asnumpy().copy() for parameter in self.state]

    def reset(self):
        for parameter, value in zip(self.state, self.initial):
            parameter.set_data(Tensor(value))
        for parameter, value in (
            (self.loss_scale.scale, 1024.0),
            (self.loss_scale.good, 0.0),
            (self.loss_scale.skipped, 0.0),
        ):
            parameter.set_data(Tensor(value, dtype.float32))

    def step(self, gradients, tokens, learning_rate=0.01):
        """One step from these accumulated gradients; see `scalars`."""
        for accumulator, gradient in zip(self.accumulators.gradients, gradients):
            accumulator.set_data(Tensor(gradient))
        statistics = np.arange(6, dtype=np.float32)
        statistics[0] = tokens
        self.accumulators.statistics.set_data(Tensor(statistics))
        outputs = read_outputs(self.apply(Tensor(learning_rate, dtype.float32)))
        np.testing.assert_array_equal(outputs.statistics.asnumpy(), statistics)
        return scalars(outputs)


@pytest.fixture(scope="module")
def benches(make_parameters):
    return {clip_norm: Bench(make_parameters(), clip_norm) for clip_norm in (1.0, None)}


@pytest.fixture
def bench(benches):
    benches[1.0].reset()
    return benches[1.0]


def check_steps(bench, numpy_adam, random_arrays, sizes):
    """Steps whose accumulated gradients have these sizes, against the definition; returns the norms."""
    expected = numpy_adam(bench.options, [parameter.asnumpy() for parameter in bench.parameters])
    norms, scale, tokens = [], 1024.0, 37.0
    for step, size in enumerate(sizes):
        accumulated = random_arrays(step, size)
        mean = [gradient.astype(np.float64) * NOMINAL / (scale * tokens) for gradient in accumulated]
        norms.append(np.sqrt(sum(np.sum(gradient**2) for gradient in mean)))
        clip = 1.0 if bench.options.clip_norm is None else min(1.0, bench.options.clip_norm / norms[-1])
        norm, scale_used, skipped = bench.step(accumulated, tokens)
        assert (scale_used, skipped) == (scale, 0.0)
        assert norm == pytest.approx(norms[-1], rel=1e-5)  # 72 squares summed in float32
        expected.update([clip * gradient for gradient in mean], 0.01)
        for found, value in zip(bench.parameters, expected.values):
            # The clip divides by norm + 1e-6: a relative 1e-6 in the moments, on top of float32.
            np.testing.assert_allclose(found.asnumpy(), value, rtol=2e-5, atol=1e-6 * 0.01, err_msg=found.name)
        scale = scale * 2.0 if step % 2 else scale  # grows after every second step
    return norms


def test_steps_match_numpy_with_and_without_clipping(bench, random_arrays, numpy_adam):
    norms = check_steps(bench, numpy_adam, random_arrays, [1.0, 1000.0, 30.0, 5000.0])
    assert norms[0] < 1.0 < norms[1] and norms[2] < 1.0 < norms[3]


def test_no_clip_norm_means_no_clipping(benches, random_arrays, numpy_adam):
    assert check_steps(benches[None], numpy_adam, random_arrays, [1000.0, 3000.0])[1] > 1.0


def test_clipping_is_visible_in_the_moments(bench, random_arrays):
    """One Adam step hides the size of its gradient; the first moment shows it: (1 - beta1) * g / |g| beyond the
    limit.
    """
    gradients = random_arrays(3, 1e4)
    bench.step(gradients, 10.0)
    norm = np.sqrt(sum(np.sum(gradient.astype(np.float64) ** 2) for gradient in gradients))
    for first, gradient in zip(bench.adam.first, gradients):
        np.testing.assert_allclose(first.asnumpy(), 0.2 * gradient / norm, rtol=1e-5, atol=1e-8)


def test_accumulators_are_empty_afterwards(bench, random_arrays):
    bench.step(random_arrays(0), 10.0)
    for accumulator in (*bench.accumulators.gradients, bench.accumulators.statistics):
        assert not accumulator.asnumpy().any(), accumulator.name


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 5])  # a dense parameter, an expert's
def test_an_overflow_skips_the_step_and_halves_the_scale(bench, random_arrays, broken, place):
    bench.step(random_arrays(0), 10.0)
    before = [parameter.asnumpy().copy() for parameter in bench.state]
    gradients = random_arrays(1)
    gradients[place].reshape(-1)[1] = broken
    norm, scale_used, skipped = bench.step(gradients, 10.0)
    assert not np.isfinite(norm) and (scale_used, skipped) == (1024.0, 1.0)
    for parameter, old in zip(bench.state, before):
        assert parameter.asnumpy().tobytes() == old.tobytes(), parameter.name
    for accumulator in (*bench.accumulators.gradients, bench.accumulators.statistics):
        assert not accumulator.asnumpy().any(), accumulator.name
    norm, scale_used, skipped = bench.step(random_arrays(2), 10.0)
    assert np.isfinite(norm) and (scale_used, skipped) == (512.0, 1.0)
    assert float(bench.adam.updates.asnumpy()) == 2.0


def test_a_step_without_tokens_is_a_step_of_zero(bench, random_arrays):
    norm, _, skipped = bench.step([0.0 * gradient for gradient in random_arrays(0)], tokens=0.0)
    assert (norm, skipped) == (0.0, 0.0)
    for parameter in bench.state[:-1]:
        assert not parameter.asnumpy().any(), parameter.name


# ---- micro-batches


class NetworkBench:
    """A network whose rows do not influence one another: hash routing, slots for everybody."""

    def __init__(self, networks, rows, precision="fp32", scale=None):
        self.config = networks.small_config(
            {"dense_layers": 0},
            {"router": {"type": "hash"}, "capacity": {"factor": 4.0}},
            runtime={"precision": precision},
        )
        self.network = networks.build_network(self.config, rows)
        networks.randomise(self.network, 0)
        self.network.set_train()
        self.parameters = ordered_parameters(self.network.trainable_params(), slice_of)
        self.statistics = Statistics(1, 4)
        self.loss_scale = LossScale(scale)
        self.objective = Objective(self.network, int(NOMINAL))
        self.accumulators = Accumulators(self.parameters, self.statistics.size)
        self.micro = MicroStep(BatchGradients(self.objective, self.parameters), self.accumulators, self.loss_scale)
        update = new_update(self.parameters, self.statistics.size, self.loss_scale, OptimizerConfig(clip_norm=None))
        self.first = update.adam.first
        self.whole = WholeStep(BatchGradients(self.objective, self.parameters), update)

    def accumulate(self, batch):
        return self.statistics.unpack(self.micro(*fields(batch)).asnumpy())

    def step(self, batch, learning_rate=0.003):
        """Statistics; gradient norm, scale used, steps skipped."""
        outputs = read_outputs(self.whole(Tensor(learning_rate, dtype.float32), *fields(batch)))
        return self.statistics.unpack(outputs.statistics.asnumpy()), scalars(outputs)

    def gradients(self):
        return {
            parameter.name: total.asnumpy() for parameter, total in zip(self.parameters, self.accumulators.gradients)
        }


def fields(batch, rows=slice(None)):
    return [Tensor(batch[name][rows]) for name in BATCH_FIELDS]


@pytest.fixture(scope="module")
def pairs(networks):
    """Two micro-batches of two rows, accumulated."""
    bench, batch = NetworkBench(networks, rows=2), networks.make_batch(rows=4)
    for half in (slice(0, 2), slice(2, 4)):
        statistics = bench.accumulate({name: values[half] for name, values in batch.items()})
    return bench, batch, statistics


def test_two_micro_batches_are_one_batch_of_both(networks, pairs):
    """The step without accumulators, on all rows at once, against what two micro-steps gather."""
    accumulated, batch, statistics = pairs
    bench = NetworkBench(networks, rows=4)
    expected, (norm, _, _) = bench.step(batch)
    for name, values in expected.items():
        np.testing.assert_allclose(statistics[name], values, rtol=1e-6, err_msg=name)  # a sum in another order
    assert statistics["tokens"] == batch["loss_mask"].sum() and statistics["assigned"].sum() == 48
    gradients = {name: gradient * NOMINAL / statistics["tokens"] for name, gradient in accumulated.gradients().items()}
    assert norm == pytest.approx(
        np.sqrt(sum(np.sum(gradient.astype(np.float64) ** 2) for gradient in gradients.values())), rel=1e-5
    )
    for parameter, first in zip(bench.parameters, bench.first):
        gradient = gradients[parameter.name]
        # After one step the first moment is (1 - beta1) = 0.2 times the gradient. Sums over tokens in another order:
        # float32's 6e-8 of their largest terms.
        np.testing.assert_allclose(
            first.asnumpy(), 0.2 * gradient, atol=5e-7 * np.abs(gradient).max(), rtol=0, err_msg=parameter.name
        )


def test_accumulated_gradients_match_a_finite_difference(networks, numpy_model, pairs):
    """Along one direction through all parameters at once: each accumulator holds the gradient of its own parameter."""
    bench, batch, statistics = pairs
    model = networks.SmallNetwork(numpy_model, bench.config, seed=0, rows=4).double(training=True)
    rng, step, slope = np.random.default_rng(0), 1e-6, 0.0
    ahead, behind = model, model
    for name, gradient in bench.gradients().items():
        direction = rng.standard_normal(gradient.shape)
        slope += np.sum(gradient * direction)
        ahead, behind = ahead.moved(name, step * direction), behind.moved(name, -step * direction)
    assert float(statistics["task"]) == pytest.approx(model.losses(batch)["task"], rel=1e-5)
    expected = (ahead.objective(batch, NOMINAL) - behind.objective(batch, NOMINAL)) / (2.0 * step)
    size = np.sqrt(sum(np.sum(gradient**2) for gradient in bench.gradients().values()))
    # float32 leaves a few 1e-6 of the gradient's norm; the difference of two numbers near 10 errs by 1e-15 / step.
    assert abs(slope - expected) < 3e-5 * size


def test_evaluation_reports_the_same_sums_and_leaves_no_trace(networks, pairs):
    bench, batch, _ = pairs
    before = bench.gradients(), bench.accumulators.statistics.asnumpy()
    evaluate = EvaluationStep(bench.objective)
    vectors = [evaluate(*fields(batch, half))[0].asnumpy() for half in (slice(0, 2), slice(2, 4))]
    # Every token had its slot in training already, so evaluation's larger capacity changes nothing.
    np.testing.assert_allclose(vectors[0] + vectors[1], before[1], rtol=1e-5)
    np.testing.assert_array_equal(bench.accumulators.statistics.asnumpy(), before[1])
    for name, gradient in bench.gradients().items():
        np.testing.assert_array_equal(gradient, before[0][name])


def test_fp16_skips_until_the_scale_fits_and_then_trains(networks):
    """A scale of 2**30 overflows float16 in the backward pass. Parameters stay float32 throughout."""
    bench = NetworkBench(
        networks, rows=2, precision="fp16", scale=LossScaleConfig(initial=2.0**30, growth_interval=1000)
    )
    batch, losses, overflows = networks.make_batch(rows=2), [], 0
    before = networks.parameter_arrays(bench.network)
    for _ in range(24):
        statistics, (norm, scale, skipped) = bench.step(batch)
        losses.append(statistics["task"] / statistics["tokens"])
        assert scale == 2.0 ** (30 - overflows)
        overflows += not np.isfinite(norm)
        assert skipped == overflows
        if overflows == len(losses):  # no step was applied so far
            for name, value in networks.parameter_arrays(bench.network).items():
                assert value.tobytes() == before[name].tobytes(), name
    assert 1 <= overflows < 20
    assert losses[-1] < losses[0] - 0.01
    assert {parameter.dtype for parameter in bench.parameters} == {dtype.float32}
