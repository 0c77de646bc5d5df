"""Gradients for the tests of MindSpore cells."""

import pytest


@pytest.fixture
def pullback():
    """`pullback(cell, inputs, cotangents, weights=())`: outputs, and gradients of sum <cotangent, output>.

    Inputs are NumPy arrays; gradients are taken for the float ones and for the parameters `weights`. The cell returns a
    tensor or a tuple of tensors.
    """
    from mindspore import Tensor, nn, ops

    class Contracted(nn.Cell):
        def __init__(self, cell, count):
            super().__init__()
            self.cell = cell
            self.count = count

        def construct(self, *arrays):
            outputs = self.cell(*arrays[self.count :])
            if self.count == 1:
                outputs = (outputs,)
            total = 0.0
            for i in range(self.count):
                total = total + (outputs[i] * arrays[i]).sum()
            return total, outputs

    class Differentiated(nn.Cell):
        def __init__(self, contracted, positions, weights):
            super().__init__()
            self.differentiate = ops.value_and_grad(contracted, positions, weights, has_aux=True)

        def construct(self, *arrays):
            return self.differentiate(*arrays)

    def run(cell, inputs, cotangents, weights=()):
        count = len(cotangents)
        positions = tuple(count + i for i, array in enumerate(inputs) if array.dtype.kind == "f")
        contracted = Contracted(cell, count)
        contracted.set_train(cell.training)
        step = Differentiated(contracted, positions, list(weights) or None)
        (_, outputs), gradients = step(*(Tensor(array) for array in (*cotangents, *inputs)))
        if weights:
            of_inputs, of_weights = gradients
        else:
            of_inputs, of_weights = gradients, ()
        return [to_numpy(outputs), to_numpy(of_inputs), to_numpy(of_weights)]

    def to_numpy(tensors):
        return [tensor.asnumpy() for tensor in tensors] if isinstance(tensors, (tuple, list)) else [tensors.asnumpy()]

    return run
