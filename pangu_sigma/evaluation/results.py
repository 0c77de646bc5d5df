"""What an evaluation leaves: a file of records for each measurement, `results.json`, and a table."""

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Type

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import printable
from pangu_sigma.evaluation.intervals import CONFIDENCE
from pangu_sigma.evaluation.measurement import MeasuredFigure, Record
from pangu_sigma.metrics.perplexity import DIVERGED
from pangu_sigma.runtime.files import check_output, write_atomically
from pangu_sigma.runtime.strict_json import dumps, read_object
from pangu_sigma.runtime.text_table import TableColumn, text_table

RESULTS = "results.json"
_MARKERS = (b'{"checkpoint": ', b'{\n "checkpoint": ')  # how our files begin
_COLUMNS = (
    TableColumn("", "<", wraps=True),
    TableColumn("domain", "<", wraps=True),
    TableColumn("metric", "<"),
    TableColumn("value"),
    TableColumn(f"{CONFIDENCE:.0%} interval"),
    TableColumn("number"),
)


class RecordFile:
    """Records of one measurement, a JSON object a line after a header; a context manager.

    Opened again, it holds the records that were written whole, and continues after them.

    Args:
        path: the file.
        header: what the records depend on.
        fresh: drop what is there.

    Raises InputError: the file is of another header, or cannot be written.
    """

    def __init__(self, path: Path, header: Dict[str, Any], fresh: bool) -> None:
        header = json.loads(dumps(header))  # as it will be read back
        self.records: Dict[int, Record] = {}
        check_output("--output", path, _MARKERS)
        whole = [] if fresh else _whole_lines(path)
        if whole:
            if whole[0] != header:
                other = [f"another {name}" for name in header if whole[0].get(name) != header[name]]
                raise InputError(
                    f"{path}: holds records of {(other or ['something else'])[0]}; expected another --output, or "
                    "--fresh to replace them"
                )
            self.records = {line["number"]: line["record"] for line in whole[1:]}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, "".join(map(_line, [header, *whole[1:]])))
            self._file = open(path, "a", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"--output {path}: cannot be written ({error.strerror}); expected a writable folder"
            ) from None

    def __enter__(self) -> "RecordFile":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._file.close()

    def add(self, numbers: Sequence[int], records: Sequence[Record]) -> None:
        """Keeps records of examples, here and in the file."""
        self.records.update(zip(numbers, records))
        self._file.write(
            "".join(_line({"number": number, "record": record}) for number, record in zip(numbers, records))
        )
        self._file.flush()


class Measured(NamedTuple):
    name: str
    figures: List[MeasuredFigure]
    notes: List[str]


def as_json(heading: Dict[str, Any], measured: Sequence[Measured]) -> Dict[str, Any]:
    """`heading`, then results.<measurement>.<domain>.<metric>: value, low, high (of the confidence interval, or null),
    examples; and notes.<measurement>.
    """
    results: Dict[str, Any] = {}
    for name, figures, _ in measured:
        for figure in figures:
            found = {**figure.estimate._asdict(), "examples": figure.examples}
            results.setdefault(name, {}).setdefault(figure.domain, {})[figure.metric] = found
    return {
        **heading,
        "confidence": CONFIDENCE,
        "results": results,
        "notes": {one.name: one.notes for one in measured if one.notes},
    }


def table(measured: Sequence[Measured]) -> str:
    """A line a figure; `number` is that of its examples."""
    rows = []
    for name, figures, _ in measured:
        shown = ""
        for figure in figures:
            value, low, high = figure.estimate
            interval = "-" if low is None or high is None else f"{_number(low)} to {_number(high)}"
            own = name if name != shown else ""
            rows.append((own, figure.domain, figure.metric, _number(value), interval, str(figure.examples)))
            shown = name
    return "\n".join(text_table(_COLUMNS, rows))


def write_results(folder: Path, content: Dict[str, Any]) -> Path:
    """Writes `results.json`, whole or not at all. Other measurements that it holds of the same heading stay in it."""
    path = folder / RESULTS
    check_output("--output", path, _MARKERS)
    before, content = read_object(path), dict(content)
    if {**before, "results": 0, "notes": 0} == {**content, "results": 0, "notes": 0}:
        kept = {name: found for name, found in before.get("results", {}).items() if name not in content["results"]}
        notes = {name: found for name, found in before.get("notes", {}).items() if name in kept}
        content.update(results={**kept, **content["results"]}, notes={**notes, **content["notes"]})
    write_atomically(path, printable(dumps(content, indent=1, ensure_ascii=False)) + "\n")
    return path


def _number(value: float) -> str:
    """At most six characters, for numbers from 0, or `diverged`."""
    if not math.isfinite(value):
        return DIVERGED
    for limit, form in ((99.0, ".3f"), (9999.0, ".1f"), (999999.0, ".0f")):
        if value < limit:
            return f"{value:{form}}"
    return f"{value:.0e}"


def _line(content: Dict[str, Any]) -> str:
    return printable(dumps(content, ensure_ascii=False)) + "\n"


def _whole_lines(path: Path) -> List[Dict[str, Any]]:
    """The objects up to the first line that is none, as what was being written when a run was cut off."""
    found: List[Dict[str, Any]] = []
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            content = json.loads(line)
            if not isinstance(content, dict) or (found and not {"number", "record"} <= content.keys()):
                break
            found.append(content)
    except (FileNotFoundError, ValueError):
        pass
    except OSError as error:
        raise InputError(f"--output {path}: cannot be read ({error.strerror}); expected a folder of results") from None
    return found
