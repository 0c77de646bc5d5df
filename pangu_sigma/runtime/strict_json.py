"""The JSON that this project writes: what JSON has no numbers for (NaN, infinity) is null. All files and printed
objects go through it. And reading it, as far as a program that was cut off wrote it.

What a run that diverged measured is such a null; an older version wrote NaN in its place, which `number` reads as the
same.
"""

import json
import math
from pathlib import Path
from typing import Any, Dict, List, Optional


def dumps(content: Any, **options: Any) -> str:
    """What goes into a file or is printed.

    Args:
        content: what `json.dumps` takes; numbers may be NaN or infinite.
        options: those of `json.dumps`; without `indent` all stands on one line.
    """
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


def read_object(path: Path) -> Dict[str, Any]:
    """A JSON object; empty if the file is missing, cut off or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_lines(path: Path) -> List[Dict[str, Any]]:
    """The objects of a file with one a line, up to the first line that is not one."""
    records: List[Dict[str, Any]] = []
    try:
        for line in path.read_bytes().splitlines():
            record = json.loads(line)
            if not isinstance(record, dict):
                break
            records.append(record)
    except (OSError, ValueError):
        pass
    return records
