"""What is written at the axes of a figure and beside its curves and bars, and the fonts that draw names of any script.

matplotlib is imported when fonts are asked for.
"""

import math
import unicodedata
from functools import lru_cache
from typing import FrozenSet, List, Sequence, Tuple

FONT_PT = 8.0
CHARACTER_PT = 5.1  # digits and most small letters of DejaVu Sans, which is wider than most fonts, at 8 pt
# Those that are wider: each at least as wide as the widest of its kind.
_WIDE, _CAPITAL = 1.65, 1.35
MOST_TICKS = 7


def shortened(label: str, room_pt: float) -> str:
    """Of a label that is too wide its end, where names of folders differ.

    Args:
        label: the label.
        room_pt: how wide it may be, in points.
    """
    if text_width(label) <= room_pt:
        return label
    while label and text_width("\u2026" + label) > room_pt:
        label = label[1:]
    return "\u2026" + label


def text_width(text: str) -> float:
    """At most so many points, at 8 pt; before a font is known, which in a page is the reader's."""
    usual = 0.0  # characters that it is as wide as
    for character in text:
        wide = unicodedata.east_asian_width(character) in "WF" or character in "MWmw@%\u2026"
        usual += _WIDE if wide else _CAPITAL if character.isupper() else 1.0
    return CHARACTER_PT * usual


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


LATIN = "DejaVu Sans"  # comes with matplotlib


def families(texts: Sequence[str]) -> List[str]:
    """Families that together have all the characters of the texts, as far as installed ones do: the first that has a
    character draws it.
    """
    needed = frozenset(character for text in texts for character in text if ord(character) > 0x7F)
    return [LATIN, *_others(needed - _characters(_file(LATIN)))] if needed else [LATIN]


@lru_cache(maxsize=64)
def _others(missing: FrozenSet[str]) -> Tuple[str, ...]:
    """Further families for characters that the first does not have."""
    from matplotlib.font_manager import fontManager

    left, found = set(missing), []
    # Those without serifs first, as the figures' own, with simplified characters before others of the Chinese script;
    # by name, so that a machine draws the same each time.
    for entry in sorted(
        fontManager.ttflist,
        key=lambda one: ("Sans" not in one.name, "Mono" in one.name, not one.name.endswith(" SC"), one.name),
    ):
        if not left:
            break
        if entry.style != "normal" or entry.weight not in (400, "normal", "regular", "book") or entry.name in found:
            continue
        if "Last Resort" in entry.name:  # has a box for every character
            continue
        own = left & _characters(entry.fname)
        if own:
            found.append(entry.name)
            left -= own
    return tuple(found)


def _file(family: str) -> str:
    from matplotlib.font_manager import FontProperties, findfont

    return str(findfont(FontProperties(family=family)))


@lru_cache(maxsize=64)
def _characters(path: str) -> FrozenSet[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):  # a font that cannot be read has none
        return frozenset()
