"""The JSON that this project writes: what JSON has no numbers for (NaN, infinity) is null. All files and printed
objects go through it.

What a run that diverged measured is such a null; an older version wrote NaN in its place, which `number` reads as the
same.
"""

import json
import math
from typing import Any, Optional


def dumps(content: Any, **options: Any) -> str:
    """`content` as strict JSON, on one line unless `options`, those of `json.dumps`, say otherwise."""
    return json.dumps(finite_only(content), allow_nan=False, **options)


def finite_only(content: Any) -> Any:
    """The same lists and mappings, with None for each number that is not finite; tuples become lists."""
    if isinstance(content, dict):
        return {name: finite_only(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite_only(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def number(value: Any) -> Optional[float]:
    """A finite number as a float; None for what is none, and for what a run that diverged has in place of one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond float64
        return None
