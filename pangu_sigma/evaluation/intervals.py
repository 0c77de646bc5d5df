"""Values with their 95 % confidence intervals: Wilson's for shares, the bootstrap for everything else."""

from typing import Callable, NamedTuple, Optional, Sequence

import numpy as np
from scipy import stats

from pangu_sigma.runtime.strict_json import number

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 1  # the same examples give the same interval
_MOST_NUMBERS = 10_000_000  # of the resamples that are in memory at once


class Estimate(NamedTuple):
    """`low`, `high`: None where one example says nothing of the spread, or where there is no finite value. `value`: NaN
    or infinite of a model that diverged.
    """

    value: float
    low: Optional[float]
    high: Optional[float]


def share(hits: Sequence[bool]) -> Estimate:
    """Of examples that hit, with Wilson's score interval."""
    interval = stats.binomtest(int(sum(hits)), len(hits)).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(sum(hits) / len(hits), float(interval.low), float(interval.high))


def mean(values: Sequence[float]) -> Estimate:
    """With the percentile bootstrap over examples."""
    return ratio(values, [1.0] * len(values))


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], then: Callable[[float], float] = float
) -> Estimate:
    """Sum of numerators over sum of denominators, such as nats a token, with the percentile bootstrap over examples;
    then an increasing function of it, such as the exponential. NaN where a numerator is not finite.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    value = then(above.sum() / below.sum())
    if len(above) < 2 or not np.isfinite(value):
        return Estimate(value, None, None)
    found = stats.bootstrap(
        (above, below),
        _ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=max(1, _MOST_NUMBERS // len(above)),
        random_state=np.random.default_rng(SEED),
    ).confidence_interval
    return Estimate(value, number(then(float(found.low))), number(then(float(found.high))))


def _ratio(above: np.ndarray, below: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(above.sum(axis=axis) / below.sum(axis=axis))
