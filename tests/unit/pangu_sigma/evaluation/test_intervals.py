import math

import numpy as np
import pytest

from pangu_sigma.evaluation import intervals


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (7, 10), (50, 50), (1, 1)])
def test_a_share_has_wilsons_interval(hits, n):
    """Its closed form, with the normal quantile as tables give it."""
    z, p = 1.959964, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = intervals.share([True] * hits + [False] * (n - hits))
    assert found == pytest.approx((p, middle - half, middle + half), abs=1e-6)  # z has so many digits


def test_the_bootstrap_of_a_ratio_is_that_of_a_plain_loop():
    """Resampled here with numbers of its own: the ends of the interval agree to their own scatter."""
    rng = np.random.default_rng(8)
    tokens = rng.integers(20, 60, 200)
    nats = tokens * rng.gamma(4.0, 1.0, 200)
    drawn = [rng.integers(0, 200, 200) for _ in range(4000)]
    low, high = np.quantile([nats[pick].sum() / tokens[pick].sum() for pick in drawn], [0.025, 0.975])
    found = intervals.ratio(nats, tokens)
    scatter = 0.1 * (high - low)  # a quantile of 2,000 resamples scatters by some 4 % of the interval's width
    assert found.value == pytest.approx(nats.sum() / tokens.sum())
    assert found.low == pytest.approx(low, abs=scatter) and found.high == pytest.approx(high, abs=scatter)


def test_an_increasing_function_takes_the_interval_along():
    plain = intervals.ratio([1.0, 2.0, 4.0], [1, 1, 2])
    assert intervals.ratio([1.0, 2.0, 4.0], [1, 1, 2], math.exp) == pytest.approx(tuple(math.exp(x) for x in plain))


def test_the_same_examples_give_the_same_interval_and_one_gives_none():
    assert intervals.mean([0.1, 0.5, 0.9]) == intervals.mean([0.1, 0.5, 0.9])
    assert intervals.mean([0.25]) == (0.25, None, None)
