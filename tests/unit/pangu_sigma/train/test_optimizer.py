import numpy as np
import pytest

from mindspore import Parameter, ParameterTuple, Tensor, dtype, nn

from locmoe_ops.tensor_parallel import slice_of
from pangu_sigma.config.schema_run import OptimizerConfig
from pangu_sigma.model.parameter_groups import decays, is_expert_parameter, ordered_parameters
from pangu_sigma.train.optimizer import HybridAdam

OPTIONS = OptimizerConfig(weight_decay=0.1)


class Fed(nn.Cell):
    """HybridAdam with its gradients in parameters: a tuple of tensors as input would be a constant of the graph."""

    def __init__(self, adam, shapes):
        super().__init__(auto_prefix=False)
        self.adam = adam
        self.gradients = ParameterTuple(
            [Parameter(Tensor(np.zeros(shape, np.float32)), name=f"gradient.{i}") for i, shape in enumerate(shapes)]
        )

    def construct(self, learning_rate, scale, finite):
        return self.adam(self.gradients[:], learning_rate, scale, finite)


class Bench:
    """HybridAdam over the small parameters, compiled once; `reset` brings it back to its beginning."""

    def __init__(self, parameters):
        self.parameters = parameters
        self.adam = HybridAdam(parameters, OPTIONS)
        self.fed = Fed(self.adam, [parameter.shape for parameter in parameters])
        self.state = [*parameters, *self.adam.first, *self.adam.second, self.adam.updates]

    def reset(self, values):
        for parameter in self.state:
            parameter.set_data(Tensor(np.zeros(parameter.shape, np.float32)))
        for parameter, value in zip(self.parameters, values):
            parameter.set_data(Tensor(value))

    def update(self, gradients, learning_rate=0.01, scale=1.0, finite=True):
        for parameter, gradient in zip(self.fed.gradients, gradients):
            parameter.set_data(Tensor(gradient))
        updates = self.fed(Tensor(learning_rate, dtype.float32), Tensor(scale, dtype.float32), Tensor(finite))
        assert float(updates.asnumpy()) == float(self.adam.updates.asnumpy())

    def snapshot(self):
        return [parameter.asnumpy().copy() for parameter in self.state]


@pytest.fixture(scope="module")
def shared_bench(make_parameters):
    return Bench(make_parameters())


@pytest.fixture
def bench(shared_bench, random_arrays):
    shared_bench.reset(random_arrays(0))
    return shared_bench


def test_several_steps_match_numpy(bench, random_arrays, numpy_adam):
    """From zero weights, so that the steps themselves are seen, not lost in the last places of the weights."""
    bench.reset([0.0 * value for value in random_arrays(0)])
    expected = numpy_adam(OPTIONS, [value.asnumpy() for value in bench.parameters])
    for step in range(6):
        # Gradients from 1e-3 to 1e2; the rate changes, and scaling by a power of two is exact.
        gradients, rate = random_arrays(step + 1, 10.0 ** (step - 3)), 0.01 * (step + 1)
        bench.update([8.0 * gradient for gradient in gradients], rate, 0.125)
        expected.update(gradients, rate)
        assert float(bench.adam.updates.asnumpy()) == step + 1
        for found, value in zip(bench.parameters, expected.values):
            # Powers of beta and square roots in float32, a few roundings (6e-8) each step.
            np.testing.assert_allclose(found.asnumpy(), value, rtol=1e-5, atol=1e-6 * rate, err_msg=found.name)


def test_only_matrices_decay(bench, random_arrays):
    """Without gradients nothing but decay is left: w (1 - rate * decay)."""
    before = [value.asnumpy().copy() for value in bench.parameters]
    bench.update([0.0 * value for value in before], learning_rate=0.5)
    for parameter, value in zip(bench.parameters, before):
        factor = 0.95 if parameter.ndim > 1 and "b_in" not in parameter.name else 1.0
        np.testing.assert_allclose(parameter.asnumpy(), factor * value, rtol=1e-6, err_msg=parameter.name)


@pytest.mark.parametrize("size", [1e-6, 1e-15])
def test_tiny_gradients_move_experts_and_little_else(bench, random_arrays, numpy_adam, size):
    """Far above the experts' epsilon 1e-20, they make steps of full length there; the others' 1e-8 shortens theirs."""
    bench.reset([0.0 * value for value in random_arrays(0)])
    expected = numpy_adam(OPTIONS, [value.asnumpy() for value in bench.parameters])
    for step in range(3):
        gradients = random_arrays(step, size)
        bench.update(gradients)
        expected.update(gradients, 0.01)
    for parameter, value in zip(bench.parameters, expected.values):
        np.testing.assert_allclose(
            parameter.asnumpy(), value, rtol=1e-4, atol=1e-7 * np.abs(value).max(), err_msg=parameter.name
        )
    moved = {parameter.name: np.abs(parameter.asnumpy()).mean() for parameter in bench.parameters}
    assert moved["blocks.1.feed_forward.experts.w_in"] > 0.005
    if size == 1e-15:
        assert moved["blocks.0.attention.project.weight"] < 1e-8


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("updates_before", [0, 2])
def test_a_skipped_step_changes_no_bit(bench, random_arrays, broken, updates_before):
    for step in range(updates_before):
        bench.update(random_arrays(step + 1))
    before = bench.snapshot()
    gradients = random_arrays(9)
    for gradient in gradients:
        gradient.reshape(-1)[::2] = broken
    bench.update(gradients, scale=float(broken), finite=False)
    for parameter, old, new in zip(bench.state, before, bench.snapshot()):
        assert new.tobytes() == old.tobytes(), parameter.name


def test_a_skipped_step_does_not_count(bench, random_arrays, numpy_adam):
    """The step after it is corrected for the bias of the steps that were applied."""
    bench.reset([0.0 * value for value in random_arrays(0)])
    expected = numpy_adam(OPTIONS, [value.asnumpy() for value in bench.parameters])
    for step in range(4):
        gradients = random_arrays(step)
        if step % 2 == 0:
            bench.update([np.full_like(gradient, np.nan) for gradient in gradients], finite=False)
        bench.update(gradients)
        expected.update(gradients, 0.01)
    assert float(bench.adam.updates.asnumpy()) == 4
    for parameter, value in zip(bench.parameters, expected.values):
        np.testing.assert_allclose(parameter.asnumpy(), value, rtol=1e-5, atol=1e-8)


def test_idle_experts_move_by_their_momentum(bench, random_arrays, numpy_adam):
    """Dense Adam: an expert that saw no token keeps moving."""
    expected = numpy_adam(OPTIONS, [value.asnumpy() for value in bench.parameters])
    gradients, idle = random_arrays(1), random_arrays(2)
    idle[4][0], idle[5][0] = 0.0, 0.0
    for each in (gradients, idle):
        bench.update(each)
        expected.update(each, 0.01)
    assert np.abs(expected.steps[4][0]).min() > 0.0
    np.testing.assert_allclose(bench.parameters[4].asnumpy(), expected.values[4], rtol=1e-6, atol=1e-7)


def test_state_is_float32_and_starts_at_zero(make_parameters):
    adam = HybridAdam(make_parameters(), OPTIONS)
    for state in (*adam.first, *adam.second, adam.updates):
        assert state.dtype == dtype.float32 and not state.requires_grad and not state.asnumpy().any()
    names = [state.name for state in (*adam.first, *adam.second)]
    assert len(set(names)) == len(names)


def test_groups_have_their_own_epsilon_and_decay(make_parameters):
    assert HybridAdam(make_parameters(), OPTIONS).groups == [
        (0, 2, 1e-8, 0.1),
        (2, 4, 1e-8, 0.0),
        (4, 5, 1e-20, 0.1),
        (5, 6, 1e-20, 0.0),
    ]


@pytest.mark.parametrize("router", ["hash", "switch"])
def test_order_of_a_networks_parameters(networks, router):
    """Dense before experts; in each, what decays comes first, and of that the maps, from the top of the network down.
    Everything trainable, once; a hash table is not.
    """
    network = networks.build_network(networks.small_config({"sparse_query_layer": True}, {"router": {"type": router}}))
    ordered = ordered_parameters(network.trainable_params(), slice_of)
    kinds = [(is_expert_parameter(parameter.name), not decays(parameter.name)) for parameter in ordered]
    assert kinds == sorted(kinds) and len(set(kinds)) == 4
    names = [parameter.name for parameter in ordered]
    maps = [
        name
        for name in names
        if name.endswith(
            (".query.weight", ".key.weight", ".value.weight", ".project.weight", ".w_in.weight", ".w_out.weight")
        )
    ]
    assert (
        names[: len(maps)] == maps
        and maps[0].startswith("query_layer.")
        and maps[-1] == "blocks.0.attention.query.weight"
    )
    assert sorted(names) == sorted(parameter.name for parameter in network.trainable_params())
    assert not any("table" in name for name in names)
    experts = [name for name in names if name.rsplit(".", 1)[-1] in ("w_in", "b_in", "w_out", "b_out")]
    assert [name for name in names if is_expert_parameter(name)] == experts and len(experts) == 8
    for parameter in ordered:
        one_dimensional = parameter.ndim == 1 or parameter.name.endswith((".b_in", ".b_out"))
        assert decays(parameter.name) is not one_dimensional, parameter.name
