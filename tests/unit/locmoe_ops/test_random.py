import numpy as np
import pytest
from scipy import stats

import mindspore as ms
from mindspore import Tensor

from locmoe_ops import random
from locmoe_ops.random import SeededDropout, SeededUniform, position_bits

pytestmark = pytest.mark.usefixtures("graph_mode")

SEEDS = np.array([0, 1, 2, -1, 2**31 - 1, -(2**31), 123456789, -987654321], np.int32)
LENGTH = 20_000
# A fixed seed makes these tests exact: they fail for a change of the generator, not by chance. With some ten draws, a
# sound generator gives a smaller p-value than this once in a thousand changes.
SMALLEST_P = 1e-4


def draw(seeds=SEEDS, length=LENGTH, salt=3):
    return SeededUniform(length, salt)(Tensor(seeds)).asnumpy()


@pytest.fixture(scope="module")
def numbers():
    return draw()


def mixed_by_integers(bits):
    """The mixer on one 32-bit number, in Python integers; shifts keep the sign as those on int32 do."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        signed = bits - 2**32 if bits >= 2**31 else bits
        bits = ((signed ^ (signed >> shift)) * factor) % 2**32
    return bits


def test_numbers_match_integer_arithmetic():
    found = draw(length=6, salt=9)
    for row, seed in enumerate(SEEDS):
        expected = [
            mixed_by_integers((int(offset) + int(seed)) % 2**32) % 2**24 / 2**24 for offset in position_bits(6, 9)
        ]
        assert found[row].tolist() == expected


class Checked(np.ndarray):
    """int64 whose numbers must stay in the range of int32, whatever is computed with them."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        found = getattr(ufunc, method)(*(np.asarray(each) for each in inputs), **options)
        assert -(2**31) <= found.min() and found.max() < 2**31, ufunc
        return found.view(Checked)


def test_no_number_on_the_way_leaves_int32(monkeypatch):
    """The same arithmetic on NumPy numbers that are checked; what comes out is the mixer's number, all bits of it."""
    for name, function in (("_and", np.bitwise_and), ("_xor", np.bitwise_xor), ("_shift", np.right_shift)):
        monkeypatch.setattr(random, name, function)
    monkeypatch.setattr(random, "_constant", lambda bits: np.int64(bits))
    generator = np.random.default_rng(0)
    offsets = np.concatenate(
        [[0, 1, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1], generator.integers(0, 2**32, 3000)]
    )
    seeds = np.concatenate([SEEDS.astype(np.int64), generator.integers(-(2**31), 2**31, 10)])[:, None]
    high, low = random.mixed_halves(
        (offsets >> 16).view(Checked), (offsets & 0xFFFF).view(Checked), seeds.view(Checked)
    )
    found = np.asarray(high) * 65536 + np.asarray(low)
    expected = (offsets + seeds) % 2**32
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        signed = np.where(expected >= 2**31, expected - 2**32, expected)
        product = ((signed ^ (signed >> shift)) % 2**32).astype(np.uint64) * np.uint64(factor)
        expected = (product % np.uint64(2**32)).astype(np.int64)
    np.testing.assert_array_equal(found, expected)


def test_numbers_lie_in_the_half_open_unit_interval_on_a_grid(numbers):
    assert numbers.dtype == np.float32 and numbers.shape == (len(SEEDS), LENGTH)
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    assert np.array_equal(numbers * 2**24, np.floor(numbers * 2**24))


def test_a_row_depends_on_its_seed_alone(numbers):
    order = [5, 0, 3]
    assert np.array_equal(draw(SEEDS[order]), numbers[order])


def test_pynative_mode_draws_the_same():
    compiled = draw()
    ms.set_context(mode=ms.PYNATIVE_MODE)
    assert np.array_equal(draw(), compiled)


@pytest.mark.parametrize("row", range(len(SEEDS)))
def test_numbers_of_a_row_are_uniform(numbers, row):
    counts = np.histogram(numbers[row], bins=64, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > SMALLEST_P
    assert stats.kstest(numbers[row].astype(np.float64), "uniform").pvalue > SMALLEST_P


def test_numbers_at_a_position_are_uniform_over_consecutive_seeds():
    columns = draw(np.arange(LENGTH, dtype=np.int32), length=4)
    for column in columns.T:
        assert stats.kstest(column.astype(np.float64), "uniform").pvalue > SMALLEST_P


def assert_independent(a, b):
    """No cell of a 16 x 16 table of the pairs is too full."""
    table = np.histogram2d(a.ravel(), b.ravel(), bins=16, range=((0, 1), (0, 1)))[0]
    assert stats.chisquare(table.ravel()).pvalue > SMALLEST_P


def test_salts_rows_and_neighbours_are_independent(numbers):
    assert_independent(numbers, draw(salt=4))
    assert_independent(numbers[:-1], numbers[1:])
    assert_independent(numbers[:, :-1], numbers[:, 1:])


@pytest.mark.parametrize("other", [{"salt": 4}, {"seeds": SEEDS + np.int32(1)}, {"seeds": SEEDS[::-1]}])
def test_no_sequence_is_another_one_moved(numbers, other):
    """The largest cross-correlation over all shifts, and of the mirrored sequence: about 1 where one contains the
    other.
    """
    centred = numbers[0].astype(np.float64) - 0.5
    second = draw(**other)[0].astype(np.float64) - 0.5
    for candidate in (second, second[::-1]):
        spectrum = np.fft.rfft(centred) * np.conj(np.fft.rfft(candidate))
        correlation = np.fft.irfft(spectrum, LENGTH) / (LENGTH / 12)
        # Independent: normal with deviation 1/sqrt(LENGTH), so 7 deviations for the largest of 20,000.
        assert np.abs(correlation).max() < 7 / np.sqrt(LENGTH)


def test_position_bits_are_distinct_within_and_differ_between_salts():
    first, second = position_bits(1 << 16, 0), position_bits(1 << 16, 1)
    assert len(set(first.tolist())) == 1 << 16
    # Two random subsets of 2**32 numbers of this size share one on average.
    assert len(np.intersect1d(first, second)) < 10


def test_position_bits_are_nowhere_equally_spaced():
    bits = position_bits(1 << 16, 0)
    for distance in (1, 2, 1000):
        # Of 2**16 random differences out of 2**32, some pair is equal about every other time.
        differences = bits[distance:] - bits[:-distance]
        assert len(np.unique(differences)) > len(differences) - 10


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_scales_the_rest(rate):
    x = np.random.default_rng(0).uniform(1, 2, (len(SEEDS), 50, 40)).astype(np.float32)
    dropout = SeededDropout(rate, 2000, salt=1).set_train()
    found = dropout(Tensor(x), Tensor(SEEDS)).asnumpy()
    kept = found != 0
    np.testing.assert_allclose(found[kept], x[kept] / (1 - rate), rtol=1e-6)
    assert stats.binomtest(int(kept.sum()), kept.size, 1 - rate).pvalue > SMALLEST_P
    assert np.array_equal(kept, (draw(length=2000, salt=1) >= rate).reshape(x.shape))


def test_dropout_passes_gradients_of_kept_elements_alone(pullback):
    x = np.ones((len(SEEDS), 10), np.float32)
    (found,), (gradient,), _ = pullback(SeededDropout(0.5, 10, salt=1).set_train(), [x, SEEDS], [3 * x])
    assert np.array_equal(gradient, 3 * found) and set(found.ravel()) == {0.0, 2.0}


@pytest.mark.parametrize("rate, training", [(0.5, False), (0.0, True)])
def test_dropout_is_the_identity_outside_training_and_at_rate_0(rate, training):
    x = np.random.default_rng(0).standard_normal((len(SEEDS), 10)).astype(np.float32)
    dropout = SeededDropout(rate, 10, salt=1).set_train(training)
    assert np.array_equal(dropout(Tensor(x), Tensor(SEEDS)).asnumpy(), x)


def test_dropout_keeps_half_precision():
    x = np.ones((len(SEEDS), 10), np.float16)
    assert SeededDropout(0.5, 10, salt=1).set_train()(Tensor(x), Tensor(SEEDS)).asnumpy().dtype == np.float16
