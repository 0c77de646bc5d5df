"""What is written at the axes of a figure and beside its curves and bars."""

import math
import unicodedata
from typing import List

LABEL = 42  # characters that fit into the width of a figure
MOST_TICKS = 7


def shortened(label: str, most: int = LABEL) -> str:
    """Of a label that is too wide its end, where names of folders differ. East Asian characters count twice."""
    if text_width(label) <= most:
        return label
    while text_width(label) > most - 1:
        label = label[1:]
    return "\u2026" + label


def text_width(text: str) -> int:
    """In characters of Latin script."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def log_ticks(low: float, high: float) -> List[float]:
    """Round numbers in [low, high], of which there are at most 7.

    Args:
        low, high: ends of the axis, positive.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        every = [factor * 10.0**power for power in powers for factor in factors]
        inside = [tick for tick in every if low <= tick <= high]
        if len(inside) <= MOST_TICKS:
            return inside
    return inside[:: -(-len(inside) // MOST_TICKS)]


def compact(value: float) -> str:
    """A tick's number: without trailing zeros, with a power of ten where it is far from 1."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        mantissa, _, power = f"{value:.2g}".partition("e")
        return f"{mantissa}e{int(power)}" if power else mantissa
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
