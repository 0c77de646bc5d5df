"""Functions of tensors that need care on some backend."""

from mindspore import Tensor, ops


def log(x: Tensor) -> Tensor:
    """Natural logarithm of x <float32>, above 0, to rounding.

    MindSpore's Log on CPU is off by up to 2e-6, and by other amounts where its threads share out the work otherwise, which they try out
    while a run goes on: two runs of the same steps then differ in the last bits. Xlogy is neither.
    """
    return ops.xlogy(ops.ones_like(x), x)
