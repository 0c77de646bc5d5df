"""How numbers are written, on the page, in the terminal and in tables."""

from typing import Any, Callable, Mapping, Optional, Tuple

from pangu_sigma.metrics.perplexity import DIVERGED


def significant(value: float, digits: int = 4) -> str:
    """Plain notation where that is short, with at most `digits` significant ones; whole numbers in full."""
    if abs(value) >= 10 ** (digits - 1) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def time_unit(longest: float, milliseconds: bool = False) -> Tuple[str, float]:
    """The unit for durations of up to `longest` seconds (also `milliseconds`), and how many seconds it has."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if longest >= 2 * length:
            return unit, length
    return ("ms", 1e-3) if milliseconds and 0 < longest < 1 else ("s", 1.0)


def size_unit(largest: float) -> Tuple[str, float]:
    """The unit for numbers of up to `largest` bytes, and how many bytes it has."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if largest >= scale:
            return unit, scale
    return "B", 1.0


def seconds(value: float) -> str:
    """A duration, given in seconds, with three significant digits."""
    unit, length = time_unit(value)
    if value < 1 and value != 0:
        return f"{significant(value * 1e3, 3)} ms"
    return f"{significant(value / length, 3)} {unit}"


def size(value: float, decimals: Optional[int] = None) -> str:
    """A number of bytes: with so many decimals (none below 1 kB), or else with three significant digits."""
    unit, scale = size_unit(value)
    if decimals is None:
        return f"{significant(value / scale, 3)} {unit}"
    return f"{value / scale:.{decimals if scale > 1 else 0}f} {unit}"


def percent(value: float) -> str:
    """A fraction in [0, 1] as a percentage."""
    return f"{value * 100:.1f} %"


def shown(name: str, value: float) -> str:
    """The `value` as its metric's `name` says: seconds, bytes, a share, or a plain number."""
    if name.endswith("(s)"):
        return seconds(value)
    if name.endswith("(B)"):
        return size(value)
    return percent(value) if name.endswith(("_share", "_fraction")) else significant(value)


def with_range(name: str, spread: Optional[Mapping[str, Any]], show: Callable[[str, float], str] = shown) -> str:
    """Mean, and the range over seeds on a second line where there are several; a dash where nothing was measured;
    `diverged` where a seed diverged, whatever the others did.

    Args:
        name: the metric.
        spread: as `pangu_sigma.report.collect.spread` gives it; None or empty: not measured.
        show: writes a value of the metric.
    """
    if not spread:
        return "-"
    if spread.get("diverged"):
        if spread["seeds"] < 2:
            return DIVERGED
        others = f"; others from {show(name, spread['min'])}" if spread["diverged"] < spread["seeds"] else ""
        return f"{DIVERGED}\n{spread['diverged']:.0f} of {spread['seeds']:.0f} seeds{others}"
    text = show(name, spread["mean"])
    return text if spread["seeds"] < 2 else f"{text}\n{show(name, spread['min'])} to {show(name, spread['max'])}"
