import numpy as np
import pytest

from mindspore import Tensor, jit, ops

from locmoe_ops.functions import choice_major, softplus, sortable_bits, swap_first

pytestmark = pytest.mark.compiles

pytestmark = pytest.mark.usefixtures("graph_mode")


def test_sortable_bits_are_those_of_the_number():
    """Every binade, its first numbers and its last; neighbours; zeros; below zero the negative of the pattern."""
    powers = np.exp2(np.arange(-126, 127)).astype(np.float32)
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [powers, np.nextafter(powers, np.float32(np.inf)), np.nextafter(powers[1:], np.float32(0)), rng.random(999)]
        + [np.exp2(rng.uniform(-126, 127, 2000)), [0.0, -0.0]]
    ).astype(np.float32)
    found = jit(sortable_bits)(Tensor(x)).asnumpy()
    np.testing.assert_array_equal(found, np.where(x == 0, 0, x.view(np.int32)))
    np.testing.assert_array_equal(jit(sortable_bits)(Tensor(-x)).asnumpy(), -found)


def test_sortable_bits_of_the_largest_numbers_keep_the_order():
    x = np.sort(np.exp2(np.random.default_rng(0).uniform(125, 128, 1000))).astype(np.float32)
    found = jit(sortable_bits)(Tensor(x)).asnumpy().astype(np.int64)
    assert np.array_equal(np.sign(np.diff(found)), np.sign(np.diff(x)))


def test_softplus_and_its_slope_to_rounding():
    """From where it is the exponential to where it is x, and at 0, against float64."""
    x = np.concatenate([np.linspace(-80, 80, 1601), [0.0, 1e-6, -1e-6, 0.3, -0.3]]).astype(np.float32)
    summed = ops.grad(_sum_of_softplus)
    found, slope = jit(softplus)(Tensor(x)).asnumpy(), jit(summed)(Tensor(x)).asnumpy()
    wide = x.astype(np.float64)
    # MindSpore's exponential on CPU is off by up to 5e-7 |x|, by processor: 2.2e-5 at -75 on one.
    most = 2e-6 + 6e-7 * np.abs(wide)
    assert (np.abs(found / np.logaddexp(0, wide) - 1) <= most).all()
    assert (np.abs(slope * (1 + np.exp(-wide)) - 1) <= most).all()


def _sum_of_softplus(x):
    return softplus(x).sum()


@pytest.mark.parametrize("choices", [1, 3])
def test_choice_major_puts_first_choices_first(choices):
    values = np.arange(4 * choices, dtype=np.int32).reshape(4, choices)
    np.testing.assert_array_equal(jit(choice_major)(Tensor(values)).asnumpy(), values.T.ravel())


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5)])
def test_swap_first_is_a_transposition(shape):
    values = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    np.testing.assert_array_equal(jit(swap_first)(Tensor(values)).asnumpy(), values.transpose(1, 0, 2, 3))
