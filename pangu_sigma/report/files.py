"""Reading what a cut-off program may have left."""

import json
from pathlib import Path
from typing import Any, Dict, List


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
