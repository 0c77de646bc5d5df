"""Fonts that have the characters of a figure's names, which may be of any script. matplotlib is imported when one asks
for them.
"""

from functools import lru_cache
from typing import FrozenSet, List, Sequence, Tuple

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
