"""Colours of pages and figures, light and dark. A colour has one meaning: hues are variants (or runs), slate is what a
step's time goes to, brown is what bytes are sent for.
"""

from typing import Dict, List, Tuple

# name: colour on a light ground, which figures in files have, and on a dark one
INK, MUTED, LINE, CARD = "ink", "muted", "line", "card"
COLOURS: Dict[str, Tuple[str, str]] = {
    "ground": ("#fbfbfa", "#16181c"),
    CARD: ("#ffffff", "#1f2227"),
    INK: ("#1d1f23", "#e8eaed"),
    MUTED: ("#5f6570", "#a2a8b3"),
    LINE: ("#dfe1e5", "#383c44"),
    # Hues that stay apart for the colour-blind.
    "c0": ("#2a6fc9", "#6aa5f2"),
    "c1": ("#d9622b", "#f08a5a"),
    "c2": ("#12926a", "#42c296"),
    "c3": ("#8d55c7", "#b48ceb"),
    "c4": ("#1390a8", "#4dbfd6"),
    "c5": ("#b58900", "#dcb63c"),
    "c6": ("#c2407e", "#ea80b0"),
    # Tones of a hue that no variant has, from strong to weak.
    "time0": ("#3a4454", "#dde3eb"),
    "time1": ("#727d8d", "#a1abb9"),
    "time2": ("#a9b2be", "#6b7584"),
    "time3": ("#e0e4e9", "#414955"),
    "bytes0": ("#5a3517", "#f0d9bf"),
    "bytes1": ("#936338", "#c79c6e"),
    "bytes2": ("#c8a179", "#8f683f"),
    "bytes3": ("#ecdcc8", "#5b4026"),
}
HUES = 7


def light(name: str) -> str:
    """The colour `name` as figures are drawn with it."""
    return COLOURS[name][0]


def hue(number: int) -> str:
    """The colour of a variant; an eighth one has the first's again, and another marker and pattern."""
    return light(f"c{number % HUES}")


def tones(kind: str, count: int) -> List[str]:
    """So many of the four tones of `time` or `bytes`, as far apart as they go."""
    chosen = (0,) if count == 1 else tuple(round(place * 3 / (count - 1)) for place in range(count))
    return [light(f"{kind}{tone}") for tone in chosen]


def variables(dark: bool) -> str:
    """The colours as variables of a style sheet."""
    return " ".join(f"--{name}: {pair[dark]};" for name, pair in COLOURS.items())


VARIABLE = {pair[0]: f"var(--{name})" for name, pair in COLOURS.items()}  # of each light colour
