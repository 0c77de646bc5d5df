"""`pangu-sigma summary`: finished runs side by side, as a table and as one JSON file.

Reads each run's `summary.json`, whose metrics `pangu_sigma.train.metrics` defines, and needs no MindSpore.
"""

import json
import textwrap
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.metrics.perplexity import DIVERGED, perplexity_text, usable_perplexity
from pangu_sigma.report.numbers import size
from pangu_sigma.runtime.files import write_output
from pangu_sigma.runtime.strict_json import dumps, number
from pangu_sigma.runtime.text_table import WIDTH, TableColumn, text_table

NAME = "summary.json"
VALIDATION = "valid/perplexity"
_NOT_MEASURED = "-"
_LEGEND = "All but validation is of each run's second half. Bytes: all ranks, one step."


class RunSummary(NamedTuple):
    """What a run left. `metrics` are those of `summary.json`; one that does not apply to the run is absent, and one
    that has no finite value null.
    """

    folder: str
    router: str
    unigram_perplexity: Optional[float]
    metrics: Dict[str, Any]

    @property
    def diverged(self) -> bool:
        return VALIDATION in self.metrics and self.metrics[VALIDATION] is None


class Column(NamedTuple):
    """A metric's place in the table."""

    header: str  # two lines
    metric: str
    show: Callable[[float], str]


def summarise_runs(folders: Sequence[str], output: Optional[str] = None) -> None:
    """Prints the table of the runs in `folders`, those that diverged last; `output`, if given, gets their metrics as
    JSON, whole or not at all.

    Raises:
        InputError: a run is unfinished or its summary damaged; two runs have one router, or other validation text;
            `output` cannot be written.
    """
    runs = sorted((read_summary(folder) for folder in folders), key=lambda run: run.diverged)
    seen: Dict[str, str] = {}
    for run in runs:
        if run.router in seen:
            raise InputError(
                f"{seen[run.router]} and {run.folder} are both runs of router {run.router}; expected one run a router"
            )
        seen[run.router] = run.folder
        if run.unigram_perplexity != runs[0].unigram_perplexity:
            raise InputError(
                f"{runs[0].folder} and {run.folder} were validated on different text (unigram perplexity "
                f"{runs[0].unigram_perplexity} and {run.unigram_perplexity}); expected runs of the same data"
            )
    if output is not None:
        write_output("--output", Path(output), dumps(combine(runs), indent=1) + "\n", (b'{\n "unigram_perplexity": ',))
    print(table(runs), flush=True)


def read_summary(folder: str) -> RunSummary:
    """Reads and checks a run directory's summary. Raises InputError, naming the file, if it is missing or not one."""
    path = Path(folder) / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: is missing; expected the run directory of a finished run") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:  # not UTF-8, or not JSON
        raise InputError(f"{path}: is not JSON; expected the summary of a finished run") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: found no mapping of metrics; expected the summary of a finished run")
    router = content.pop("router", None)
    for name in ("code", "status"):  # no metrics
        content.pop(name, None)
    if not isinstance(router, str):
        raise InputError(f"{path}: field `router` is {json.dumps(router)}; expected a router's name")
    for name in ["unigram_perplexity", *(column.metric for column in COLUMNS)]:
        found = content.get(name)
        if found is None or (isinstance(found, float) and number(found) is None):
            continue  # what is not finite is null, or NaN of an older version
        if number(found) is None or found < 0:
            raise InputError(f"{path}: field `{name}` is {json.dumps(found)}; expected a number of at least 0")
    if VALIDATION in content:
        content[VALIDATION] = usable_perplexity(content[VALIDATION])
    return RunSummary(str(folder), router, number(content.pop("unigram_perplexity", None)), content)


def combine(runs: Sequence[RunSummary]) -> Dict[str, Any]:
    """`unigram_perplexity`, and under `routers.<name>` the metrics of that router's run."""
    return {"unigram_perplexity": runs[0].unigram_perplexity, "routers": {run.router: run.metrics for run in runs}}


def table(runs: Sequence[RunSummary]) -> str:
    """One line a run under a header of two, at most 79 columns wide, and the line that any trained model must beat."""
    columns = [TableColumn("router", "<"), *(TableColumn(column.header) for column in COLUMNS)]
    lines = text_table(columns, [[run.router, *(_cell(column, run) for column in COLUMNS)] for run in runs])
    lines.append("")
    unigram = runs[0].unigram_perplexity
    if unigram:
        measured = [(run.router, run.metrics[VALIDATION]) for run in runs if VALIDATION in run.metrics]
        ratios = ", ".join(
            f"{router} {DIVERGED if perplexity is None else f'{perplexity / unigram:.2f}'}"
            for router, perplexity in measured
        )
        text = f"Unigram perplexity {unigram:.1f}" + (f"; ratio to it: {ratios}" if ratios else "")
        lines += textwrap.wrap(text, WIDTH)
    return "\n".join([*lines, _LEGEND])


def _cell(column: Column, run: RunSummary) -> str:
    value = number(run.metrics.get(column.metric))
    if column.metric == VALIDATION and run.diverged:
        return DIVERGED
    return _NOT_MEASURED if value is None else column.show(value)


def _bytes(count: float) -> str:
    return size(count, decimals=1)


# Fractions, and bytes of a step summed over ranks, as `pangu_sigma.train.metrics` defines them.
COLUMNS = (
    Column("validation\nperplexity", VALIDATION, perplexity_text),
    Column("tokens\nper s", "throughput/tokens_per_second", "{:.0f}".format),
    Column("kept on\nown node", "moe/local_fraction", "{:.1%}".format),
    Column("dropped\ntokens", "moe/drop_fraction", "{:.1%}".format),
    Column("load max\n/ mean", "moe/load_max_over_mean", "{:.2f}".format),
    Column("between\nnodes", "comm/inter_node(B)", _bytes),
    Column("of it\ntokens", "comm/all_to_all/inter_node(B)", _bytes),
)
