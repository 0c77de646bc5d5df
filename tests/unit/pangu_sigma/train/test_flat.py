"""Biases and norms that are updated in vectors, against the form that updates each by itself: the same update."""

import numpy as np
import pytest

from mindspore import Tensor, dtype

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.shard_spec import ShardSpec
from locmoe_ops.tensor_parallel import marked
from locmoe_ops.topology import Topology
from pangu_sigma.bench.step import random_batch
from pangu_sigma.checkpoint.state import parameter_entries
from pangu_sigma.config.ascend import flattens
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.schema_run import LossScaleConfig, OptimizerConfig
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.train.engine import TrainEngine
from pangu_sigma.train.flat import Bundles, FlatExchange, gradient_exchange
from pangu_sigma.train.optimizer_state import OptimizerState
from pangu_sigma.train.schedule import LossScale
from pangu_sigma.train.step import Accumulators, ApplyStep
from pangu_sigma.train.update import Update, read_outputs

pytestmark = pytest.mark.compiles

WORDS = Vocabulary(29, 2, np.ones(29, np.int64))
ROWS, LENGTH = 2, 12
ALONE, SPLIT = Topology(1, 1), [0, 1, 4]


def make(networks, flat):
    """fp16, so that steps overflow at first, and several micro-batches."""
    config = networks.small_config(
        {"dense_layers": 1},
        {"router": {"type": "switch"}},
        optimizer={"flat": flat, "clip_norm": None, "weight_decay": 0.1},
        train={"global_batch_size": 2 * ROWS, "micro_batch_size": ROWS, "steps": 10},
        runtime={"precision": "fp16", "loss_scale": {"initial": 2.0**24}},
    )
    return TrainEngine(config, Runtime(create_collectives("local", ALONE, 0)), WORDS)


@pytest.fixture(scope="module")
def engines(networks):
    return {flat: make(networks, flat) for flat in (False, True)}


def saved(engine):
    """What a checkpoint holds, by name."""
    return {entry.name: entry.get().copy() for entry in engine.saved_state()}


def set_state(engine, values):
    for entry in engine.state():
        entry.set(values[entry.name])


def train(engine, steps):
    batches = [random_batch(ROWS, LENGTH, WORDS)] * 2
    return [engine.train_step(batches, step, 0.01) for step in steps]


def assert_equal_states(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_steps_are_the_same_to_the_bit_and_either_form_resumes_the_other(engines):
    """Without clipping: the norm is a sum in another order. Some of the first steps overflow."""
    results = {flat: train(engine, range(1, 7)) for flat, engine in engines.items()}
    skipped = [one.skipped_steps for one in results[False]]
    assert 0 < skipped[-1] < 6
    for one, other in zip(results[True], results[False]):
        np.testing.assert_equal(one.sums, other.sums)
        assert (one.loss_scale, one.skipped_steps) == (other.loss_scale, other.skipped_steps)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-6, nan_ok=True)  # float32 squares
    half = saved(engines[False])
    assert_equal_states(saved(engines[True]), half)
    assert {entry.name: entry.shape for entry in engines[True].state()} == {
        entry.name: entry.shape for entry in engines[False].state()
    }
    ended = {}
    for flat, engine in engines.items():
        changed = {name: value + 1.0 for name, value in half.items() if value.shape}
        set_state(engine, {**half, **changed})
        set_state(engine, half)
        train(engine, (7, 8))
        ended[flat] = saved(engine)
    assert_equal_states(ended[True], ended[False])
    assert any(not np.array_equal(value, half[name]) for name, value in ended[False].items())


@pytest.mark.parametrize("clip_norm", [None, 2.0])
def test_an_update_alone(make_parameters, random_arrays, clip_norm):
    """Accumulated gradients of some steps, of which the second overflows: weights and moments by name."""
    found = {}
    for flat in (False, True):
        options = OptimizerConfig(flat=flat, clip_norm=clip_norm, weight_decay=0.1)
        collectives, parameters = create_collectives("local", ALONE, 0), make_parameters()
        for parameter, value in zip(parameters, random_arrays(9)):
            parameter.set_data(Tensor(value))
        accumulators = Accumulators(parameters, 6)
        scale = LossScale(LossScaleConfig(initial=8.0))
        update = Update(gradient_exchange(parameters, 6, collectives, options), scale, options, 1)
        apply = ApplyStep(accumulators, update)
        for step in (1, 2, 3):
            for total, value in zip(accumulators.gradients, random_arrays(step, 8.0)):
                total.set_data(Tensor(value if step != 2 else np.full_like(value, np.inf)))
            accumulators.statistics.set_data(Tensor(np.ones(6, np.float32)))
            skipped = read_outputs(apply(Tensor(0.01, dtype.float32))).skipped_steps
        assert float(skipped.asnumpy()) == 1.0 and float(update.adam.updates.asnumpy()) == 2.0
        entries = [*parameter_entries(parameters), *OptimizerState(update, collectives, None).gathered()]
        found[flat] = {entry.name: entry.get().copy() for entry in entries}
    assert set(found[True]) == set(found[False]) and len(found[True]) == 3 * len(make_parameters())
    for name, value in found[False].items():
        # The norm, by which clipping divides, is a float32 sum in another order: a few roundings of 6e-8, twice as much
        # in the second moment.
        np.testing.assert_allclose(found[True][name], value, rtol=2e-6 if clip_norm else 0.0, atol=0.0, err_msg=name)


@pytest.mark.parametrize(
    ("topology", "factors", "counts"),
    [
        (ALONE, (1, 1), (1, 1)),
        (Topology(2, 2, 1), (2, 2), (1, 1)),  # both ranks hold all experts
        (Topology(2, 2, 2), (2, 1), (1, 2)),  # half of the experts each: the other half's squares come from there
        (Topology(2, 2, 1, 2), (1, 1), None),  # tensor parallel: two halves of what is split, everything else once
    ],
)
@pytest.mark.parametrize("hosted", [False, True])
def test_every_parameter_is_summed_and_counted_once(
    networks, make_parameters, random_arrays, topology, factors, counts, hosted
):
    arrays, parameters = random_arrays(0), make_parameters()
    if counts is None:
        for place in SPLIT:
            marked(parameters[place], ShardSpec(0, 0, 2))
    collectives = create_collectives("local", ALONE, 0)
    if topology.world_size > 1:
        collectives = networks.TwinCollectives(0, topology)
    exchange = FlatExchange(parameters, 3, collectives, hosted)
    summed, _, squares = exchange(tuple(Tensor(array) for array in arrays), Tensor(np.ones(3, np.float32)))
    expected = [factor * array for factor, array in zip([factors[0]] * 4 + [factors[1]] * 2, arrays)]
    vectors = [np.concatenate([expected[2].ravel(), expected[3].ravel()])]  # gamma and bias
    vectors += [] if hosted else [expected[5].ravel()]
    large = [expected[0], expected[1], expected[4], *([expected[5]] if hosted else [])]
    assert [target.size for target in exchange.targets] == [one.size for one in vectors + large]
    for found, array in zip(summed, vectors + large):
        np.testing.assert_array_equal(found.asnumpy(), array)
    if counts is None:
        weights = [2 if place in SPLIT else 1 for place in range(6)]
    else:
        weights = [counts[0]] * 4 + [counts[1]] * 2
    total = sum(weight * np.sum(array.astype(np.float64) ** 2) for weight, array in zip(weights, expected))
    assert float(squares.asnumpy()) == pytest.approx(total, rel=1e-6)  # some tens of squares in float32


def test_what_is_split_and_what_is_whole_lie_in_vectors_of_their_own(make_parameters):
    parameters = make_parameters()[2:4]
    marked(parameters[1], ShardSpec(0, 0, 2))
    assert [len(vector.shape) for vector in Bundles(parameters, "dp").own] == [1, 1]
    assert len(Bundles(make_parameters()[2:4], "dp").own) == 1


@pytest.mark.parametrize(
    ("device", "flat", "shard", "ranks", "expected"),
    [
        ("cpu", None, "none", 4, False),
        ("ascend", None, "none", 4, True),
        ("ascend", False, "none", 4, False),
        ("cpu", True, "none", 4, True),
        ("ascend", None, "data_parallel", 4, False),
        ("ascend", None, "data_parallel", 1, True),  # nobody to share with: every rank holds all
    ],
)
def test_which_form_a_job_has(device, flat, shard, ranks, expected):
    config = config_from_dict({"runtime": {"device": device}, "optimizer": {"flat": flat, "zero": shard}})
    assert flattens(config, ranks) is expected
