"""The smallest useful expert capacity by LocMoE's theory (arXiv 2401.13920, Lemmas 1-3, Theorem 1). Pure functions,
float64.

The theory: tokens lie uniformly on the unit sphere of dimension d, the weights of the n gates are orthogonal, and a
token belongs to an expert where the cosine between the two is at least delta. Theorem 1 says that an expert needs a
capacity of 1 / p_i, which is at least 1 / (n p_delta). Our reading: p_i is the share of tokens that belong to expert i
among those it is given; as it is given one token in n, that share is at most n p_delta; and 1 / p_i tokens are what it
takes before it can expect one that belongs.

The paper's p_delta counts both directions, |cos| >= delta, though only cos >= delta makes a token belong: half of it
would be the literal value, and the bound twice as large. The published forms and check value are kept.
"""

from typing import Any, TypeVar

import numpy as np
from scipy import special

from locmoe_ops.capacity.factor import require_count
from locmoe_ops.errors import InputError

FORMS = ("exact", "erfc", "exp")

Floats = TypeVar("Floats", float, np.ndarray)  # a number gives a number, an array an array of its shape


def angle_probability(delta: Floats, hidden_size: int, form: str = "exact") -> Floats:
    """p_delta: the probability that a uniform token has |cos| >= delta with a fixed direction; 1 at delta 0, falling.

    Forms, with z = delta^2 d / (2 - delta^2):

    - `exact`: 1 - I_{delta^2}(1/2, (d-1)/2), with I the regularised incomplete beta function;
    - `erfc`: erfc(sqrt(z)), the paper's form for large d;
    - `exp`: exp(-z), the paper's simplification of it, by erfc(x) <= exp(-x^2).

    The published check value, p_delta near 0.3 at delta = 1/sqrt(d), holds for `exact` (0.3192 at d = 128, 0.3174 at d
    = 5120) and for `erfc` (0.3164 and 0.3173). It does not for `exp` (0.605 and 0.607), an upper bound of about twice
    that. The paper chains the forms as if each bounded the one before. The first link is no bound but an approximation:
    `erfc` lies below `exact` (by up to 1.7 % at d = 5120, 10.5 % at d = 128, 51 % at d = 4) until delta is large (0.24,
    0.56, 0.96), above it beyond. The second link, `exact` at most `exp`, holds at every delta for d >= 3; at d = 2 it
    fails from delta 0.743 on, though not near 1.

    Args:
        delta: cosine in [0, 1); a float or a float array.
        hidden_size: d, at least 2.
        form: one of `FORMS`.

    Returns: float64, of delta's shape; 0 where the probability is below the range of float64.
    Raises: InputError for values outside these ranges and for an unknown form.
    """
    exponent = _exponent(delta, hidden_size, form)
    if form != "exact":
        return special.erfc(np.sqrt(exponent)) if form == "erfc" else _exponential(-exponent)
    cosine, half = np.asarray(delta, np.float64), (hidden_size - 1) / 2.0
    # Near delta 0 the square is exact and the subtraction harmless, since p is near 1. In the tail the subtraction
    # would leave nothing, so there the same probability is taken from the other end of the beta function: 1 - I_x(a, b)
    # = I_{1-x}(b, a).
    near_zero = 1.0 - special.betainc(0.5, half, cosine**2)
    tail = special.betainc(half, 0.5, (1.0 - cosine) * (1.0 + cosine))
    found: Any = np.where(cosine**2 * hidden_size < 1.0, near_zero, tail)
    return found[()]  # an array without dimensions becomes a number


def minimum_capacity(delta: Floats, hidden_size: int, experts: int, form: str = "exact") -> Floats:
    """Tokens an expert must take from one sample: 1 / (n p_delta), with p_delta as `angle_probability` has it.

    `exact` is Theorem 1; `exp` is the bound that LocMoE+ (arXiv 2406.00023) works with, exp(z) / n. At d = 5120, n = 16
    and the published delta of 0.03: `exact` 1.9648, `erfc` 1.9664, `exp` 0.6265. So `erfc` asks for a little more than
    Theorem 1 does, and `exp` for less (from d = 3 on at every delta).

    Args:
        delta: cosine in [0, 1); a float or a float array.
        hidden_size: d, at least 2.
        experts: n, the experts that compete for a token; at least 1.
        form: one of `FORMS`.

    Returns: float64, of delta's shape, in tokens, not rounded, 1/n at delta 0; inf where it is beyond the range of
        float64.
    Raises: InputError for values outside these ranges and for an unknown form.
    """
    require_count("experts", experts)
    exponent = _exponent(delta, hidden_size, form)
    if form == "exp":
        return _exponential(exponent) / experts
    with np.errstate(divide="ignore", over="ignore"):  # inf is the answer then
        return np.reciprocal(experts * angle_probability(delta, hidden_size, form))


def _exponential(exponent: np.ndarray) -> Any:
    with np.errstate(over="ignore"):  # inf is the answer then
        return np.exp(exponent)


def _exponent(delta: Floats, hidden_size: int, form: str) -> np.ndarray:
    """z = delta^2 d / (2 - delta^2), after the arguments are found good."""
    if form not in FORMS:
        raise InputError(f"capacity: form is {form!r}, expected {', '.join(FORMS)}")
    if hidden_size < 2 or hidden_size != int(hidden_size):
        raise InputError(f"capacity: hidden_size is {hidden_size!r}, expected an integer of at least 2")
    values = np.asarray(delta, np.float64)
    bad = ~((values >= 0.0) & (values < 1.0))
    if bad.any():
        raise InputError(f"capacity: delta is {float(values[bad].flat[0])!r}, expected a cosine in [0, 1)")
    return values**2 * hidden_size / (2.0 - values**2)
