"""Experts that the host updates: against Adam in NumPy, and a training step against one that updates them itself."""

import numpy as np
import pytest

from mindspore import Parameter, Tensor

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology
from pangu_sigma.bench.step import random_batch
from pangu_sigma.config.schema_run import OptimizerConfig
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.train.engine import TrainEngine
from pangu_sigma.train.offloaded_experts import OffloadedExpertOptimizer

WORDS = Vocabulary(29, 2, np.ones(29, np.int64))
ROWS, LENGTH = 4, 12
SHAPES = {"w_in": (3, 4, 5), "w_out": (3, 5, 4), "b_in": (3, 1, 5), "b_out": (3, 1, 4)}  # three experts


class Bench:
    """A layer's experts on the host, and the same in NumPy (float64), which takes one expert at a time."""

    def __init__(self, kind):
        self.options, rng = OptimizerConfig(weight_decay=0.1, expert_state=kind), np.random.default_rng(0)
        start = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
        self.parameters = [
            Parameter(Tensor(value), name=f"blocks.1.feed_forward.experts.{name}") for name, value in start.items()
        ]
        self.host = OffloadedExpertOptimizer(self.parameters, self.options)
        self.values = {name: value.astype(np.float64) for name, value in start.items()}
        self.first, self.second = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
        self.count = 0

    def step(self, seed, touched, counts=True, rate=0.01):
        """With gradients of the experts `touched` alone; those of the others are zero."""
        rng, options = np.random.default_rng(seed), self.options
        gradients = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
        for gradient in gradients.values():
            gradient[[expert for expert in range(3) if expert not in touched]] = 0.0
        self.count += counts
        one, two = 1 - options.beta1 ** max(self.count, 1), 1 - options.beta2 ** max(self.count, 1)
        kernel = (
            rate * np.sqrt(two) / one,
            options.expert_epsilon * np.sqrt(two),
            options.weight_decay * one / np.sqrt(two),
        )
        self.host.update(
            Tensor(np.array([counts, *kernel], np.float32)), [Tensor(gradient) for gradient in gradients.values()]
        )
        for expert in (touched if options.expert_state == "host_lazy" else range(3)) if counts else ():
            for name, gradient in gradients.items():
                first, second, value = self.first[name][expert], self.second[name][expert], self.values[name][expert]
                first += (1 - options.beta1) * (gradient[expert] - first)
                second += (1 - options.beta2) * (gradient[expert].astype(np.float64) ** 2 - second)
                decay = 0.0 if name.startswith("b_") else options.weight_decay
                with np.errstate(
                    invalid="ignore"
                ):  # 0 / 0 of an expert that had no gradient yet, whose epsilon is as good as none
                    value -= rate * (np.nan_to_num(first / one / np.sqrt(second / two)) + decay * value)

    def check(self):
        for parameter in self.parameters:
            name = parameter.name.rpartition(".")[2]
            held = self.host.weights[parameter.name].get()
            np.testing.assert_array_equal(parameter.asnumpy(), held)  # the device has what the host has
            np.testing.assert_allclose(
                held, self.values[name], rtol=1e-5, atol=1e-6, err_msg=name
            )  # some roundings of 6e-8 a step
        for moment in self.host.moments:
            prefix, name = moment.name.split(".")[0], moment.name.rpartition(".")[2]
            expected = {"adam_m": self.first, "adam_v": self.second}[prefix][name]
            np.testing.assert_allclose(moment.get(), expected, rtol=1e-5, atol=1e-7, err_msg=moment.name)


@pytest.mark.parametrize("kind", ["host_dense", "host_lazy"])
def test_steps_match_numpy(kind):
    """Of idle experts dense Adam moves the weights and lets moments decay; lazy Adam does not look at them."""
    bench = Bench(kind)
    for seed, touched in enumerate([(0, 1, 2), (0, 2), (1,), (), (0, 1)]):
        bench.step(seed, touched)
        bench.check()


def test_a_skipped_step_changes_nothing():
    bench = Bench("host_dense")
    bench.step(0, (0, 1, 2))
    before = bench.host.transferred
    bench.step(1, (0, 1, 2), counts=False)
    bench.check()
    assert bench.host.transferred == before == 2 * 4 * 3 * (20 + 20 + 5 + 4)  # bytes, gradients there and weights back


def test_only_activated_experts_travel():
    bench = Bench("host_lazy")
    bench.step(0, (1,))
    assert bench.host.transferred == 2 * 4 * (20 + 20 + 5 + 4)
    bench.step(1, ())
    assert bench.host.transferred == 2 * 4 * (20 + 20 + 5 + 4)


def test_state_that_is_set_reaches_host_and_device():
    bench, other = Bench("host_dense"), Bench("host_dense")
    bench.step(0, (0, 1, 2))
    for name, bank in bench.host.weights.items():
        other.host.weights[name].set(bank.get())
    for own, moment in zip(other.host.moments, bench.host.moments):
        own.set(moment.get())
    other.values, other.first, other.second, other.count = bench.values, bench.first, bench.second, 1
    other.step(1, (0, 1))
    other.check()


class Run:
    """A network of which one party updates the experts: two micro-batches in fp16, whose first loss scales are too
    large. From the tenth step on all rows are of the first domain, and the experts of the second group idle.
    """

    def __init__(self, networks, kind):
        config = networks.small_config(
            {"dense_layers": 0},
            {"router": {"type": "switch"}},
            train={"global_batch_size": ROWS, "micro_batch_size": 2, "steps": 20},
            optimizer={"expert_state": kind, "warmup_steps": 0},
            runtime={"precision": "fp16", "loss_scale": {"initial": 2.0**26, "growth_interval": 100}},
        )
        self.parts = TrainEngine(config, Runtime(create_collectives("local", Topology(1, 1), 0)), WORDS)
        self.results = [self.step(step) for step in range(1, 10)]
        self.before = self.values()
        self.results += [self.step(step) for step in range(10, 13)]
        self.after = self.values()

    def step(self, step):
        drawn = random_batch(2, LENGTH, WORDS)
        return self.parts.train_step(
            [
                drawn._replace(ids=(drawn.ids + 2 * step + half) % 29, domain=drawn.domain * (step < 10))
                for half in range(2)
            ],
            step,
            0.01,
        )

    def values(self):
        return {entry.name: entry.get().copy() for entry in self.parts.saved_state()}


@pytest.fixture(scope="module")
def runs(networks):
    return {kind: Run(networks, kind) for kind in ("device", "host_dense")}


def of_experts(name):
    return ".experts." in name


def test_the_host_computes_what_the_step_would(runs):
    """To the bit, with steps skipped and gradients clipped; and so for checkpoints: the same names, shapes and
    values.
    """
    device, host = runs["device"], runs["host_dense"]
    assert [result.grad_norm for result in device.results if result.grad_norm < np.inf] == [
        result.grad_norm for result in host.results if result.grad_norm < np.inf
    ]
    assert 1 <= device.results[-1].skipped_steps == host.results[-1].skipped_steps < 9
    assert set(device.after) == set(host.after)
    for name, value in device.after.items():
        np.testing.assert_array_equal(host.after[name], value, err_msg=name)


def test_the_compiled_step_holds_no_state_of_experts(runs):
    held = {
        kind: [
            parameter.name
            for graph in run.parts.graphs(random_batch(2, LENGTH, WORDS))
            for parameter in graph.cell.get_parameters()
            if parameter.name.startswith("adam_")
        ]
        for kind, run in runs.items()
    }
    assert held["host_dense"] == [name for name in held["device"] if not of_experts(name)]
    assert held["host_dense"] and len(held["host_dense"]) < len(held["device"])


def test_lazy_experts_rest(runs):
    """The steps without the second domain once more, from the same state: its experts stay to the bit, where dense Adam
    moved them; the others are as with dense Adam in the first of these steps, of which all else is the same.
    """
    run = runs["host_dense"]
    for entry in run.parts.state():
        entry.set(run.before[entry.name])
    run.parts.host.lazy = True
    run.step(10)
    first = run.values()
    run.step(11)
    for name, value in filter(lambda item: of_experts(item[0]), run.values().items()):
        idle, busy = [1, 3], [0, 2]  # places of global ids 2, 3 and 0, 1: interleaved
        np.testing.assert_array_equal(value[idle], run.before[name][idle], err_msg=name)
        assert all(np.any(value[place] != first[name][place]) for place in busy), name
        assert all(np.any(run.after[name][place] != run.before[name][place]) for place in idle), name
