"""Overflow on devices that saturate: Inf becomes the largest number and NaN 0 there, so that no gradient ever looks
wrong, and a loss scale that goes by them would double for ever. The device's status register tells instead.

Such are 910A, and 910B where it was asked to (see `pangu_sigma.config.chips.reads_status`). The register is one of the
device: it is cleared before the first product of a micro-batch and read after its last gradient, and what any rank has
read counts on all. MindSpore's own loss scaling does the same (`mindspore.amp`). Compiled, and checked in exported
graphs (`pangu_sigma.audit.status`); not run on a device.
"""

from typing import Any, Optional, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops
from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2, NPUGetFloatStatusV2

_WORDS = 8  # of the register
_depend = ops.Depend()
_after = ops.MultitypeFuncGraph("after")


@_after.register("Tensor", "Tensor")
def _after_one(earlier: Tensor, value: Tensor) -> Tensor:
    return _depend(value, earlier)


class StatusRegister(nn.Cell):
    """The device's register of overflows. The order of its two operators is one of dependencies: nothing else ties them
    to what they watch.

    Args:
        clear, read: operators <int32>[8] -> <int32>[8], of which the first clears the register and the second returns
            it, all zeros where nothing has overflowed since; None: Ascend's.
    """

    def __init__(self, clear: Optional[Any] = None, read: Optional[Any] = None) -> None:
        super().__init__(auto_prefix=False)
        self.clear_register = NPUClearFloatStatusV2() if clear is None else clear
        self.read_register = NPUGetFloatStatusV2() if read is None else read
        self.words = Tensor(np.zeros(_WORDS, np.int32))
        self.map = ops.HyperMap()
        self.any = ops.ReduceMax()

    def clear(self, values: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
        """The `values`, which are there only when the register has been cleared."""
        return self.map(ops.partial(_after, self.clear_register(self.words)), values)

    def overflowed(self, results: Tuple[Tensor, ...]) -> Tensor:
        """<float32> scalar: 1 if anything has overflowed before all `results` were there, else 0."""
        words = self.read_register(_depend(self.words, results))
        return ops.cast(self.any(ops.cast(words != 0, dtype.float32)), dtype.float32)
