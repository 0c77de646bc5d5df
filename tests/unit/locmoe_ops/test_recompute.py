"""What runs again in a Cell that is recomputed, by operators in Python that count their runs."""

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor, nn, ops

from locmoe_ops.kernels import ASCEND, CPU
from locmoe_ops.recompute import BackwardPart, ForwardPart, OwnGradient, once


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def counted(function):
    """The function as an operator, and its runs so far."""
    runs = []

    def run(array):
        runs.append(1)
        return function(array)

    return ops.Custom(run, list, lambda dtype: dtype, func_type="pyfunc"), runs


class Exchange(nn.Cell):
    """An operator with a gradient of its own, which reads nothing of the forward pass."""

    def __init__(self, there, back):
        super().__init__()
        self.there, self.back = there, back

    def construct(self, x):
        return self.there(x)

    def bprop(self, x, out, dout):
        return (self.back(dout),)


class SquareBackward(BackwardPart):
    def construct(self, x, dout):
        return x * dout * 2.0


class Square(OwnGradient):
    """A gradient of its own that reads its input."""

    def __init__(self):
        super().__init__()
        self.square = ForwardPart(ops.Square())
        self.backward = SquareBackward()

    def construct(self, x):
        return self.square(x)

    def bprop(self, x, out, dout):
        return (self.backward(x, dout),)


class PlainSquare(nn.Cell):
    """The same, and nothing says so."""

    def __init__(self):
        super().__init__()
        self.square = ops.Square()

    def construct(self, x):
        return self.square(x)

    def bprop(self, x, out, dout):
        return (x * dout * 2.0,)


class Summed(nn.Cell):
    def __init__(self, cells):
        super().__init__()
        self.cells_in_order = cells

    def construct(self, x):
        return self.cells_in_order(x).sum()


class Gradient(nn.Cell):
    """Of the sum of what the Cells give, one after another, by the input."""

    def __init__(self, cells):
        super().__init__(auto_prefix=False)
        self.summed = Summed(cells)
        self.differentiate = ops.grad(self.summed)

    def construct(self, x):
        return self.differentiate(x)


@pytest.mark.parametrize(("mark", "expected"), [(once, 1), (lambda operator: operator, 2)], ids=["once", "unmarked"])
@pytest.mark.parametrize("recomputed", [True, False])
def test_an_exchange_runs_once(recomputed, mark, expected):
    (there, runs), (back, backward_runs) = counted(lambda a: a * 2), counted(lambda a: a * 2)
    cells = nn.SequentialCell(Exchange(mark(there), mark(back)), nn.Sigmoid(), nn.Tanh())
    if recomputed:
        cells.recompute()
    found = Gradient(cells)(Tensor(np.ones((2, 3), np.float32))).asnumpy()
    y = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(found, np.full((2, 3), (1 - np.tanh(y) ** 2) * y * (1 - y) * 2), rtol=1e-5)
    assert len(runs) == (expected if recomputed else 1) and len(backward_runs) == 1


@pytest.mark.parametrize(("square", "runs_of_input"), [(Square, 2), (PlainSquare, 1)])
def test_what_an_own_gradient_reads_is_computed_anew_if_it_says_so(square, runs_of_input):
    """The operator before it, whose result it reads: else that is kept."""
    (double, runs), (back, _) = counted(lambda a: a * 2), counted(lambda a: a * 2)
    cells = nn.SequentialCell(Exchange(double, back), square(), nn.Tanh())
    cells.recompute()
    found = Gradient(cells)(Tensor(np.full((2, 3), 0.5, np.float32))).asnumpy()
    np.testing.assert_allclose(found, np.full((2, 3), (1 - np.tanh(1.0) ** 2) * 2 * 1.0 * 2), rtol=1e-5)
    assert len(runs) == runs_of_input


class Form(nn.Cell):
    """A form of an operation, with what it takes besides; of several outputs the first."""

    def __init__(self, operation, *others):
        super().__init__()
        self.operation, self.others = operation, others

    def construct(self, x):
        found = self.operation(x, *self.others)
        return found[0] if isinstance(found, tuple) else found


BIAS, WEIGHT = (Tensor(np.linspace(-1, 1, n).reshape(s).astype(np.float32)) for n, s in ((3, 3), (9, (3, 3))))
FORMS = {
    "softmax": lambda kernels: Form(kernels.softmax_rows()),
    "gelu_tanh": lambda kernels: Form(kernels.activation("gelu_tanh")),
    "fast_gelu": lambda kernels: Form(kernels.activation("fast_gelu")),
    "linear": lambda kernels: Form(kernels.linear(), WEIGHT, BIAS),
    "normalise": lambda kernels: Form(kernels.normalise(1e-5), BIAS, BIAS),
}


@pytest.mark.parametrize(
    ("kernels", "form"),
    # Ascend's operator for norms has no kernel on CPU.
    [(kernels, form) for kernels in (CPU, ASCEND) for form in ("gelu_tanh", "fast_gelu", "linear")]
    + [(CPU, "normalise"), (ASCEND, "softmax")],
    ids=lambda one: getattr(one, "name", one),
)
def test_forms_of_every_device_keep_nothing_and_change_nothing(kernels, form):
    """What stands before them is computed anew; the gradient is that of what is kept, to the bit."""
    x, gradients = Tensor(np.linspace(-2, 3, 6).reshape(2, 3).astype(np.float32)), []
    for recomputed in (True, False):
        (double, runs), (back, _) = counted(lambda a: a * 2), counted(lambda a: a * 2)
        cells = nn.SequentialCell(Exchange(double, back), FORMS[form](kernels), nn.Sigmoid(), nn.Tanh())
        if recomputed:
            cells.recompute()
        gradients.append(Gradient(cells)(x).asnumpy())
        assert len(runs) == 1 + recomputed
    np.testing.assert_array_equal(*gradients)
    assert np.abs(gradients[0]).max() > 0.01
