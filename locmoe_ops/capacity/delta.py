"""Delta measured on a batch, and the distributions of cosines that reports show. NumPy, float64.

Shape legend: T tokens, d hidden size, n experts that compete for a token, k experts a token is sent to.
"""

from dataclasses import dataclass
from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy as np

from locmoe_ops.capacity.factor import require_count
from locmoe_ops.errors import InputError

STATISTICS = ("maximum", "mean", "quantile", "minimum")


def cosines(tokens: np.ndarray, gate_weights: np.ndarray) -> np.ndarray:
    """<float64>[T, n]: cosine of the angle between each token <float>[T, d] and each row of gate weights <float>[n, d].

    A zero token or a zero row has no direction and gives 0. Raises InputError where the shapes do not fit.
    """
    if tokens.ndim != 2 or gate_weights.ndim != 2 or tokens.shape[1] != gate_weights.shape[1]:
        raise InputError(
            f"capacity: tokens are {list(tokens.shape)} and gate weights {list(gate_weights.shape)}, "
            "expected [T, d] and [n, d]"
        )
    return _unit_rows(tokens) @ _unit_rows(gate_weights).T


def own_cosines(token_gate: np.ndarray, experts: Optional[np.ndarray] = None) -> np.ndarray:
    """<float64>[T, k]: each token's cosines with the experts it is sent to, out of token_gate <float64>[T, n].

    Args:
        token_gate: <float64>[T, n], from `cosines`.
        experts: <int>[T] or [T, k], columns of `token_gate`; default: of each token the expert of the largest cosine, k
            = 1.

    Raises: InputError for no tokens, a cosine that is not a number, and experts of another shape or outside [0, n).
    """
    if token_gate.ndim != 2 or token_gate.size == 0:
        raise InputError(
            f"capacity: cosines are {list(token_gate.shape)}, expected [T, n] with at least one token and expert"
        )
    if not np.isfinite(token_gate).all():
        raise InputError("capacity: cosines hold values that are not finite, expected cosines of finite tokens")
    if experts is None:
        return token_gate.max(axis=1, keepdims=True)
    chosen = experts.reshape(len(experts), -1)  # (T, k) <- (T,) or (T, k)
    if len(chosen) != len(token_gate):
        raise InputError(
            f"capacity: experts are {list(experts.shape)}, expected a row for each of {len(token_gate)} tokens"
        )
    if chosen.min() < 0 or chosen.max() >= token_gate.shape[1]:
        raise InputError(
            f"capacity: experts range from {chosen.min()} to {chosen.max()}, expected 0 to {token_gate.shape[1] - 1}"
        )
    return np.take_along_axis(token_gate, chosen, axis=1)


def measure_delta(
    token_gate: np.ndarray,
    experts: Optional[np.ndarray] = None,
    statistic: str = "maximum",
    quantile: float = 0.99,
    rows: int = 1,
) -> float:
    """The delta of `locmoe_ops.capacity.bound` as a batch shows it: a statistic of the cosines of tokens with their own
    experts.

    In the theory delta is a given threshold, the cosine of the largest angle at which a token still belongs to its
    expert. The papers measure one but do not agree on how, so the choice is open:

    - `maximum`: the largest own cosine. LocMoE+ (arXiv 2406.00023) calls the delta of its capacity rule delta_max, and
      the savings it reports over a usual capacity factor need a bound of that factor's size, far beyond what a typical
      cosine gives. It is also the cautious choice: no token of the sample asks for more. Hence the default.
    - `mean`: the typical own cosine. LocMoE's measured value (about 0.03 at d = 5120, n = 16) is of this size.
    - `quantile`: the own cosine that the share `quantile` of the tokens does not exceed; a maximum that outliers do not
      move.
    - `minimum`: the largest angle, taken literally, at which a token of the sample was sent to its expert.

    What to expect, in tokens per expert of a sample of 1024 uniform tokens with d = 5120, n = 16 (64 is the even load),
    exact form and (in brackets) exponential form: maximum about 800 (150), quantile 0.99 about 50 (11), mean 0.8 (0.3),
    minimum below 0.1. The maximum of uniform tokens grows with their number so that the exact bound stays near the
    whole sample.

    The theory's sample is one sequence and a maximum depends on the sample's size: the statistic is taken in each of
    the `rows` sequences and then averaged, so that delta does not depend on the batch size.

    Args:
        token_gate, experts, statistic, quantile, rows: as for `row_statistics`.

    Returns: in [0, 1), as the bound wants it, see `as_delta`.
    Raises: InputError for other arguments.
    """
    return as_delta(row_statistics(token_gate, experts, statistic, quantile, rows).mean())


def as_delta(cosine: float) -> float:
    """A mean of statistics in [0, 1): tokens that on the whole turn away from their experts give 0, and 1 becomes the
    largest float below.
    """
    return float(np.clip(cosine, 0.0, np.nextafter(1.0, 0.0)))


def row_statistics(
    token_gate: np.ndarray,
    experts: Optional[np.ndarray] = None,
    statistic: str = "maximum",
    quantile: float = 0.99,
    rows: int = 1,
) -> np.ndarray:
    """<float64>[rows]: the statistic in each sequence, whose mean over all sequences, those of other ranks too, is
    delta.

    Args:
        token_gate: <float64>[T, n], from `cosines`; rows are contiguous and equally long.
        experts: as for `own_cosines`.
        statistic: one of `STATISTICS`. quantile: in [0, 1], used by `quantile` only (linear interpolation).
        rows: sequences in the batch; divides T.

    Raises: InputError for other arguments.
    """
    own = own_cosines(token_gate, experts)
    require_count("rows", rows)
    if len(own) % rows:
        raise InputError(f"capacity: rows is {rows}, expected a divisor of the {len(own)} tokens")
    if statistic not in STATISTICS:
        raise InputError(f"capacity: statistic is {statistic!r}, expected {', '.join(STATISTICS)}")
    by_row = own.reshape(rows, -1)  # (rows, tokens and choices of a row) <- (T, k)
    if statistic == "quantile":
        if not 0.0 <= quantile <= 1.0:
            raise InputError(f"capacity: quantile is {quantile!r}, expected a share in [0, 1]")
        return np.quantile(by_row, quantile, axis=1)
    if statistic == "mean":
        return by_row.mean(axis=1)
    return by_row.max(axis=1) if statistic == "maximum" else by_row.min(axis=1)


@dataclass(frozen=True)
class CosineHistogram:
    """Counts of cosines in equal bins over [-1, 1]; histograms of equal bins add up over layers, ranks and steps.

    A bin holds its left edge and not its right one, but for the last, which holds both.
    """

    counts: Tuple[int, ...]

    @classmethod
    def of(cls, values: np.ndarray, bins: int = 200) -> "CosineHistogram":
        """Counts values <float>[...] of any shape; rounding beyond 1 in size is cut off. Raises InputError for no bins
        or NaN.
        """
        require_count("bins", bins)
        if np.isnan(values).any():
            raise InputError("capacity: cosines hold values that are not numbers, expected cosines of finite tokens")
        counts, _ = np.histogram(np.clip(values, -1.0, 1.0), bins=bins, range=(-1.0, 1.0))
        return cls(tuple(int(count) for count in counts))

    @property
    def edges(self) -> np.ndarray:
        """<float64>[bins + 1]: -1 to 1."""
        return np.linspace(-1.0, 1.0, len(self.counts) + 1)

    @property
    def total(self) -> int:
        """Cosines counted."""
        return sum(self.counts)

    def __add__(self, other: "CosineHistogram") -> "CosineHistogram":
        if len(self.counts) != len(other.counts):
            raise InputError(
                f"capacity: histograms have {len(self.counts)} and {len(other.counts)} bins, expected equal bins"
            )
        return CosineHistogram(tuple(a + b for a, b in zip(self.counts, other.counts)))

    def to_dict(self) -> Dict[str, Any]:
        """For JSON: `edges` of the bins, one more than `counts`."""
        return {"edges": [float(edge) for edge in self.edges], "counts": list(self.counts)}


class TokenPairCosines(NamedTuple):
    """Cosines of pairs of tokens, each pair once, none with itself."""

    within: np.ndarray  # <float64>[pairs of one expert]
    across: np.ndarray  # <float64>[pairs of two experts]


def token_pair_cosines(tokens: np.ndarray, experts: np.ndarray, limit: int = 512, seed: int = 0) -> TokenPairCosines:
    """Cosines between tokens of the same expert and between tokens of different ones (the figure of LocMoE, arXiv
    2401.13920).

    Args:
        tokens: <float>[T, d]. experts: <int>[T], the expert each is sent to (the first choice, where there are
            several).
        limit: of more tokens than this, a random subset of this size is compared; at least 1. seed: draws it.

    Raises: InputError where the shapes do not fit.
    """
    require_count("limit", limit)
    if tokens.ndim != 2 or experts.shape != tokens.shape[:1]:
        raise InputError(
            f"capacity: tokens are {list(tokens.shape)} and experts {list(experts.shape)}, expected [T, d] and [T]"
        )
    if len(tokens) > limit:
        subset = np.random.default_rng(seed).choice(len(tokens), limit, replace=False)
        tokens, experts = tokens[subset], experts[subset]
    unit = _unit_rows(tokens)
    first, second = np.triu_indices(len(tokens), k=1)
    values, same = (unit @ unit.T)[first, second], experts[first] == experts[second]
    return TokenPairCosines(values[same], values[~same])


def _unit_rows(vectors: np.ndarray) -> np.ndarray:
    """<float64>, rows of length 1; zero rows stay zero."""
    wide = vectors.astype(np.float64)  # squares of float16 values would overflow
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(length == 0.0, 1.0, length)
