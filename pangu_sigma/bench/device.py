"""What a device computes, tried on itself and compared with NumPy: random numbers, an overflow, sorts, a fused kernel.

All of it is a matter of milliseconds once it is compiled. **Not tried on Ascend**; on CPU everything runs that has a
kernel there.

Shape legend: L experts, s rows of each, a and b features.
"""

import os
from typing import List, Optional

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from locmoe_ops.fused import GroupedProduct
from locmoe_ops.random import SeededUniform, position_bits
from pangu_sigma.config.chips import CHIPS, saturates
from pangu_sigma.doctor.findings import Finding, failure, ok, unknown
from pangu_sigma.train.overflow import StatusRegister

LENGTH, SALT = 4096, 3
_SHIFTS, _FACTORS = (16, 15), (0x7FEB352D, 0x846CA68B)  # of the mixer, before its last shift by 16
# Of a result in fp16, or of 1: two kernels round it by 2**-11 each, and sum the 32 products before in another order.
_ROUNDING = 2.0**-8
BROKEN = "train on nothing like this: report the versions of MindSpore, CANN and driver"


def check_device(chip: Optional[str]) -> List[Finding]:
    """All findings; `chip`: of the device, a name of `CHIPS`; None: this is a CPU, or a chip that is not known."""
    return [check_random(), check_overflow(chip), check_sorts(), check_fused(chip)]


def check_random(draw: Optional[nn.Cell] = None) -> Finding:
    """Counter-based numbers for seeds of all signs and sizes. `draw`: what draws them; None: what training uses."""
    seeds = np.array([0, 1, -1, 2**31 - 1, -(2**31), 123456789, -987654321], np.int32)
    found = (draw or SeededUniform(LENGTH, SALT))(Tensor(seeds)).asnumpy()
    wrong = int((found != expected_numbers(seeds)).sum())
    if wrong:
        return failure("random", f"{wrong} of {found.size} random numbers are not those of NumPy", BROKEN)
    return ok("random", f"{found.size} random numbers are those of NumPy, to the bit")


def expected_numbers(seeds: np.ndarray) -> np.ndarray:
    """<float32>[R, LENGTH]: what `SeededUniform` draws for `seeds` <int32>[R], by arithmetic that wraps around."""
    bits = (position_bits(LENGTH, SALT)[None, :] + seeds.view(np.uint32)[:, None]).view(np.int32)
    for shift, factor in zip(_SHIFTS, _FACTORS):
        bits = ((bits ^ (bits >> shift)).view(np.uint32) * np.uint32(factor)).view(np.int32)
    bits = bits ^ (bits >> 16)
    return ((bits & 0xFFFFFF) / 2.0**24).astype(np.float32)


class _Square(nn.Cell):
    """x * x, and whether an overflow is seen: in the result, or where Inf does not exist in the status register."""

    def __init__(self, registers: bool) -> None:
        super().__init__(auto_prefix=False)
        self.registers = registers
        self.register = StatusRegister() if registers else nn.Identity()
        self.product = ops.MatMul()

    def construct(self, x: Tensor) -> Tensor:
        if self.registers:
            (x,) = self.register.clear((x,))
            return self.register.overflowed((self.product(x, x),))
        return ops.cast(ops.logical_not(ops.isfinite(self.product(x, x))).any(), dtype.float32)


def check_overflow(chip: Optional[str], square: Optional[nn.Cell] = None) -> Finding:
    """A product in fp16 beyond 65504 is seen as an overflow, and one below is not.

    Args:
        chip: of the device; None: none, or not known.
        square: sees overflows of a square; None: as training sees them on that chip.
    """
    registers = saturates(chip, os.environ)
    square = square or _Square(registers)
    seen = [
        float(square(Tensor(np.full((16, 16), value, np.float16))).asnumpy()) > 0.0 for value in (1.0, 300.0, 1.0)
    ]  # 16 x 300^2 = 1,440,000
    how = "in the status register" if registers else "as Inf in the result"
    if seen != [False, True, False]:
        found = f"looking for an overflow {how}: seen of 16, 1,440,000 and 16 in fp16: {seen}, expected the second"
        fix = "see runtime.chip and MS_ASCEND_CHECK_OVERFLOW_MODE; the loss scale of fp16 would go by nothing"
        return failure("overflow", found, fix)
    return ok("overflow", f"an overflow in fp16 is seen {how}, and only where there is one")


class _Sort(nn.Cell):
    """Ascending, as a graph like that of training."""

    def construct(self, values: Tensor) -> Tensor:
        return ops.sort(values)[0]


def check_sorts() -> Finding:
    """The two sorts that give slots: of weights as int32 bit patterns, of unique keys as int64, both with neighbours
    that differ in their last bit.
    """
    generator = np.random.default_rng(0)
    weights = generator.permutation(np.arange(LENGTH, dtype=np.int32) + np.float32(0.25).view(np.int32))
    keys = generator.permutation(np.arange(LENGTH, dtype=np.int64) + (1 << 40))
    wrong = [
        str(values.dtype)
        for values in (weights, keys)
        if not np.array_equal(_Sort()(Tensor(values)).asnumpy(), np.sort(values))
    ]
    if wrong:
        return failure("sort", f"{LENGTH} numbers of {' and '.join(wrong)} come out in another order", BROKEN)
    return ok("sort", f"{LENGTH} neighbouring numbers of int32 and of int64 come out in order")


def check_fused(chip: Optional[str]) -> Finding:
    """GroupedMatmul against BatchMatMul, where the `chip` has it."""
    if chip is None:
        return unknown("fused kernel", "this is a CPU, or a chip that is not in the table")
    if "experts" not in CHIPS[chip].fused.value:
        return unknown("fused kernel", f"{chip} has none ({CHIPS[chip].fused.source})")
    generator = np.random.default_rng(0)
    x, weight = (
        Tensor(generator.standard_normal(shape).astype(np.float16)) for shape in ((3, 16, 32), (3, 32, 16))
    )  # (L, s, a), (L, a, b)
    return fused_finding(GroupedProduct()(x, weight).asnumpy(), ops.BatchMatMul()(x, weight).asnumpy())


def fused_finding(found: np.ndarray, expected: np.ndarray) -> Finding:
    """Of what the fused kernel has `found`, in fp16, and the plain one, `expected`."""
    bound = _ROUNDING * np.maximum(np.abs(expected.astype(np.float32)), 1.0)
    apart = np.abs(found.astype(np.float32) - expected.astype(np.float32))
    if not (apart <= bound).all():
        worst = float(np.nanmax(apart)) if np.isfinite(apart).any() else float("nan")
        fix = "set runtime.fused.experts: false, and report the versions of MindSpore, CANN and driver"
        return failure("fused kernel", f"GroupedMatmul differs from BatchMatMul by {worst:.3g}", fix)
    return ok("fused kernel", "GroupedMatmul gives what BatchMatMul gives, to fp16's rounding")
