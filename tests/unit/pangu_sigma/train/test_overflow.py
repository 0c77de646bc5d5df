"""A step in saturating arithmetic, as on 910A: Inf becomes 65504, NaN 0, and only a register tells of it."""

from types import SimpleNamespace

import numpy as np
import pytest

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology
from pangu_sigma.config.schema_run import LossScaleConfig, OptimizerConfig
from pangu_sigma.model.inputs import BATCH_FIELDS
from pangu_sigma.train.flat import gradient_exchange
from pangu_sigma.train.overflow import StatusRegister
from pangu_sigma.train.schedule import LossScale
from pangu_sigma.train.step import Accumulators, ApplyStep, BatchGradients, MicroStep, WholeStep
from pangu_sigma.train.update import Update, read_outputs

LARGEST = np.float32(np.finfo(np.float16).max)
SIZE = 7  # of the statistics of one layer of one expert
SCALE = 2.0**17


class Device:
    """A device that saturates, and its register."""

    def __init__(self):
        self.register = np.zeros(8, np.int32)

    def product(self, a, b):
        with np.errstate(over="ignore", invalid="ignore"):
            exact = (a * b).astype(np.float16).astype(np.float32)
        if not np.isfinite(exact).all():
            self.register[3] |= 1
        return np.nan_to_num(exact, nan=0.0, posinf=LARGEST, neginf=-LARGEST)

    def clear(self, words):
        self.register[:] = 0
        return words

    def read(self, words):
        return self.register.copy()


def operator(run):
    return ops.Custom(run, lambda shape: shape, lambda of_input: of_input, func_type="pyfunc")


def product_operator(run):
    return ops.Custom(run, lambda a, b: a, lambda a, b: a, func_type="pyfunc")


class Product(nn.Cell):
    """x * w on the device, and its gradients."""

    def __init__(self, device):
        super().__init__()
        self.product = product_operator(device.product)

    def construct(self, x, w):
        return self.product(x, w)

    def bprop(self, x, w, out, dout):
        return self.product(dout, w), self.product(dout, x)


class Objective(nn.Cell):
    """The sum of x * w, where x is what the batch has in place of its mask."""

    def __init__(self, device):
        super().__init__(auto_prefix=False)
        self.weight = Parameter(Tensor(np.full((2, 2), 0.5, np.float32)), name="blocks.0.attention.project.weight")
        self.product = Product(device)

    def construct(self, batch, loss_scale):
        total = self.product(batch["loss_mask"], self.weight).sum()
        scalar, one = total * 0.0 + 1.0, ops.ones((1,), dtype.float32)
        sums = {"tokens": scalar, "task": scalar, "aux": scalar, "locality": scalar}
        sums["assigned"], sums["kept"], sums["kept_local"] = ops.ones((1, 1), dtype.float32), one, one
        return total * loss_scale, sums


class OneMore(nn.Cell):
    """A sum with a rank whose device has overflowed."""

    def construct(self, x):
        return x + 1.0


def make(registers, micro_batches, others=None):
    """A step on such a device: `run(values)` -> scale that was used, steps skipped so far."""
    device = Device()
    objective = Objective(device)
    register = StatusRegister(operator(device.clear), operator(device.read)) if registers else None
    scale = LossScale(LossScaleConfig(initial=SCALE, growth_interval=2))
    alone, options = create_collectives("local", Topology(1, 1), 0), OptimizerConfig()
    parameters = [objective.weight]
    exchange = gradient_exchange(parameters, SIZE, alone, options)
    summed = (others or alone.all_reduce("world", "gradient/overflow")) if registers else None
    update = Update(exchange, scale, options, 1, None, summed)
    accumulators = Accumulators(parameters, SIZE, overflows=registers)
    micro = MicroStep(BatchGradients(objective, parameters, register), accumulators, scale)
    apply = ApplyStep(accumulators, update)
    whole = WholeStep(BatchGradients(objective, parameters, register), update)

    def run(*values):
        rate, batches = Tensor(0.01, dtype.float32), [batch(value) for value in values]
        if micro_batches == 1:
            outputs = read_outputs(whole(rate, *batches[0]))
        else:
            for each in batches:
                micro(*each)
            outputs = read_outputs(apply(rate))
        assert np.isfinite(float(outputs.grad_norm.asnumpy()))  # which is why the norm cannot tell
        return float(outputs.loss_scale.asnumpy()), float(outputs.skipped_steps.asnumpy())

    return SimpleNamespace(run=run, device=device, weight=objective.weight)


def batch(value):
    fields = {name: np.zeros((2, 2), np.int32) for name in BATCH_FIELDS}
    fields["loss_mask"] = np.full((2, 2), value, np.float32)
    return [Tensor(fields[name]) for name in BATCH_FIELDS]


@pytest.fixture(scope="module", params=[1, 3])
def step(request):
    return request.param, make(True, request.param)


def test_the_scale_falls_until_nothing_overflows(step):
    scale_falls(*step)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_it_falls_in_pynative_mode(pynative_mode, micro_batches):
    """Where operators run as they are called, and nothing but their order ties the register to what it watches."""
    scale_falls(micro_batches, make(True, micro_batches))


def scale_falls(micro_batches, made):
    """Gradients are 4 times the scale, of which 65504 is the largest number: 8192 is the first scale that fits."""
    made.device.register[:] = 1  # left by what ran before, which is no business of this step
    before = made.weight.asnumpy().copy()
    values = [0.0] * (micro_batches - 1)  # only the first micro-batch overflows
    found = [made.run(4.0, *values) for _ in range(4)]
    assert found == [(SCALE / 2**i, i + 1.0) for i in range(4)]
    assert np.array_equal(made.weight.asnumpy(), before)
    assert [made.run(4.0, *values) for _ in range(3)] == [(8192.0, 4.0), (8192.0, 4.0), (16384.0, 5.0)]
    assert not np.array_equal(made.weight.asnumpy(), before)


def test_without_the_register_the_scale_would_double_for_ever():
    made = make(False, 1)
    assert [made.run(4.0) for _ in range(5)] == [(SCALE * 2.0 ** (i // 2), 0.0) for i in range(5)]


def test_an_overflow_of_another_rank_counts():
    made = make(True, 1, others=OneMore())
    assert [made.run(1e-3), made.run(1e-3)] == [(SCALE, 1.0), (SCALE / 2, 2.0)]
