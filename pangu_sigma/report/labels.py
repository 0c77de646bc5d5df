"""What is written at the axes of a figure and beside its curves and bars, and the fonts that draw names of any script.

matplotlib is imported when fonts are asked for.
"""

import math
import unicodedata
from contextlib import suppress
from functools import lru_cache
from typing import FrozenSet, Iterable, List, NamedTuple, Set, Tuple

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


class Fonts(NamedTuple):
    """Families that draw a text: the first that has a character draws it. `missing`: what none has."""

    families: Tuple[str, ...]
    missing: str = ""


def fonts_for(texts: Iterable[str]) -> Fonts:
    """Installed families that together have all the characters of the texts, as far as any has them."""
    needed = frozenset(character for text in texts for character in text if ord(character) > 0x7F)
    if not needed:
        return Fonts((LATIN,))
    others = _others(needed - _characters(_file(LATIN)))
    return Fonts((LATIN, *others.families), others.missing)


@lru_cache(maxsize=64)
def _others(missing: FrozenSet[str]) -> Fonts:
    """Further families for characters that the first does not have."""
    left = set(missing)
    found = _choose(left)
    if left and _add_new_fonts():
        left = set(missing)
        found = _choose(left)
    return Fonts(tuple(found), "".join(sorted(left)))


def _choose(left: Set[str]) -> List[str]:
    """Families for the characters `left`, of which it takes away those that they have."""
    from matplotlib.font_manager import fontManager

    found: List[str] = []
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
    return found


def _add_new_fonts() -> bool:
    """Tells matplotlib of fonts that were installed after it wrote its list into its cache, which it does not look
    after again; whether there are any.
    """
    from matplotlib.font_manager import findSystemFonts, fontManager

    new = sorted(set(findSystemFonts()) - {entry.fname for entry in fontManager.ttflist})
    for path in new:
        with suppress(OSError, RuntimeError):  # a font that cannot be read
            fontManager.addfont(path)
    return bool(new)


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
