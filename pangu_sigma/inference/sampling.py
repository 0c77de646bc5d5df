"""Choosing the next token from its logits, on the host in NumPy.

It takes one row of V numbers a token, little against the step that made them, and settings can then differ between
calls and rows without another graph.

Shape legend: V words.
"""

import math
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Collection, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from locmoe_ops.errors import InputError


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen, and when a row ends. By default they are drawn, up to 64, ending at end-of-text: the
    likeliest token each time (temperature 0) makes a small model repeat itself.

    Attributes:
        max_new_tokens: at most this many; fewer where the model's `sequence_length` leaves less room.
        temperature: logits are divided by it; 0: always the likeliest token (of equal ones the one with the lowest id).
        top_k: only the k likeliest tokens; 0: all. top_p: of these the fewest that together have at least this
            probability.
        repetition_penalty: logits of tokens in prompt or output are divided by it where positive, multiplied where
            negative (CTRL, arXiv 1909.05858); 1: none.
        frequency_penalty: subtracted from a token's logit for each time that it is in the output. presence_penalty:
            once, if it is.
        seed: of the random numbers, see `row_generators`.
        stop_at_end: end a row at end-of-text, which is not part of the output; False: continue with another document.
    """

    max_new_tokens: int = 64
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    stop_at_end: bool = True

    def __post_init__(self) -> None:
        _require("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        _require("temperature", self.temperature, 0.0 <= self.temperature < math.inf, "0 or more")
        _require("top_k", self.top_k, self.top_k >= 0, "0 (all) or more")
        _require("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0, at most 1")
        _require("repetition_penalty", self.repetition_penalty, 0.0 < self.repetition_penalty < math.inf, "above 0")
        for name in ("frequency_penalty", "presence_penalty"):
            _require(name, getattr(self, name), math.isfinite(getattr(self, name)), "a finite number")
        _require("seed", self.seed, self.seed >= 0, "0 or more")


_LARGEST = 1e300  # of a logit after penalties


def _require(name: str, found: float, fits: bool, expected: str) -> None:
    if not fits:
        raise InputError(f"{name} is {found}; expected {expected}")


class RowSampler:
    """Chooses one row's tokens, one after the other, and remembers them.

    Args:
        settings: how they are chosen.
        prompt: ids before the output.
        generator: this row's random numbers, one for each token if temperature is above 0.
    """

    def __init__(self, settings: SamplingSettings, prompt: Sequence[int], generator: np.random.Generator) -> None:
        self._settings = settings
        self._generator = generator
        self._output: Counter = Counter()
        self._seen = set(prompt)

    def next(self, logits: np.ndarray) -> int:
        """The next id, below V. `logits`: <float>[V]. Raises InputError where one is NaN or infinite: the model has
        diverged.
        """
        settings = self._settings
        if not np.isfinite(logits).all():
            raise InputError(
                "the model's scores for the next token are not finite numbers, as those of a run that diverged; "
                "expected another checkpoint"
            )
        adjusted = penalised(logits, self._seen, self._output, settings)
        if settings.temperature == 0.0:
            chosen = int(np.argmax(adjusted))
        else:
            chosen = draw(probabilities(adjusted, settings), self._generator.random())
        self._output[chosen] += 1
        self._seen.add(chosen)
        return chosen


def penalised(
    logits: np.ndarray, seen: Collection[int], output: Mapping[int, int], settings: SamplingSettings
) -> np.ndarray:
    """<float64>[V]: the logits after the repetition penalty, then after those of frequency and presence.

    Args:
        logits: <float>[V]. seen: ids in prompt or output, each once. output: how often each id is in the output.
        settings: the penalties.
    """
    adjusted = np.array(logits, np.float64)
    if settings.repetition_penalty != 1.0 and seen:
        ids = np.fromiter(seen, np.int64)
        values = adjusted[ids]
        with np.errstate(over="ignore"):  # see below
            adjusted[ids] = np.where(
                values > 0.0, values / settings.repetition_penalty, values * settings.repetition_penalty
            )
    for word, count in output.items():
        adjusted[word] -= settings.frequency_penalty * count + settings.presence_penalty
    # Extreme penalties reach infinity, of which differences are no numbers.
    return np.clip(adjusted, -_LARGEST, _LARGEST)


def probabilities(logits: np.ndarray, settings: SamplingSettings) -> np.ndarray:
    """<float64>[V], sum 1: softmax at the temperature, of the tokens that top-k and then top-p leave. Temperature is
    above 0.

    Of equally likely tokens at the edge of either, those with lower ids stay.
    """
    with np.errstate(over="ignore"):  # at temperatures near 0, where all but the likeliest have no weight
        scaled = np.asarray(logits, np.float64) / settings.temperature
        if not np.isfinite(scaled).all():
            scaled = (logits - np.max(logits)) / settings.temperature
    weights = np.exp(scaled - scaled.max())
    if settings.top_k or settings.top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        order = order[: settings.top_k] if settings.top_k else order
        before = np.cumsum(weights[order]) - weights[order]
        order = order[before < settings.top_p * weights[order].sum()]
        kept = np.zeros_like(weights)
        kept[order] = weights[order]
        weights = kept
    return weights / weights.sum()


def draw(distribution: np.ndarray, uniform: float) -> int:
    """The id at which the cumulated distribution <float64>[V] first exceeds `uniform`, a number in [0, 1)."""
    cumulated = np.cumsum(distribution)
    # The last sum is 1 but for rounding, and ids without probability are never taken. Below it there always is an id.
    return int(np.searchsorted(cumulated, min(uniform * cumulated[-1], np.nextafter(cumulated[-1], 0.0)), side="right"))


def row_generators(prompts: Sequence[Sequence[int]], domains: Sequence[int], seed: int) -> List[np.random.Generator]:
    """Random numbers of each row: they follow from the seed, the row's prompt and domain, and how many equal rows come
    before it.

    So a row's output does not depend on the other rows of a call, nor on their order, and equal rows get different
    output.

    Args:
        prompts: ids of each. domains: number of each. seed: of the call.
    """
    copies: Dict[Tuple[int, ...], int] = {}
    found = []
    for prompt, domain in zip(prompts, domains):
        row = (domain, *prompt)
        copy = copies.get(row, 0)
        copies[row] = copy + 1
        text = zlib.crc32(np.asarray(row, np.int64).tobytes())
        found.append(np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, text, copy)))))
    return found
