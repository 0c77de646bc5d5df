"""What the ranks' logs of earlier launches say of operators that run on the CPU for want of a device's kernel."""

import re
from collections import Counter
from pathlib import Path
from typing import Iterable, List, Optional

from pangu_sigma.config.schema import Config
from pangu_sigma.doctor.findings import Finding, not_applicable, ok, warning
from pangu_sigma.runtime.messages import BACKOFF, REDUCED

SUBJECT = "kernels"
SHOWN = 5
_NODE = re.compile(re.escape(BACKOFF) + r"\s*(\S+)")
_CAST = re.compile(r"\[([^\]\s]+)\][^\[]*" + REDUCED + r"\s+(\w+)\s+to\s+(\w+)")


def check_logs(config: Optional[Config]) -> List[Finding]:
    """Findings on the newest launch's logs in `train.output_dir`; `config` None: nothing says where they are."""
    if config is None:
        return [not_applicable(SUBJECT, "no CONFIG", "no CONFIG is given, whose runs have logs")]
    folder = Path(config.train.output_dir) / "logs"
    launches = [path for path in folder.glob("launch_*") if any(path.rglob("worker_*.log"))]  # not of a process alone
    logs = sorted(max(launches, key=lambda path: path.stat().st_mtime).rglob("worker_*.log")) if launches else []
    if not logs:
        return [not_applicable(SUBJECT, "no logs yet", f"no logs of ranks in {folder}")]
    fallen, cast = Counter[str](), Counter[str]()
    for log in logs:
        with open(log, encoding="utf-8", errors="replace") as lines:
            _count(lines, fallen, cast)
    place, findings = logs[0].parent, []
    if fallen:
        found = (
            f"{sum(fallen.values())} operators of {place} run on the CPU, with copies there and back: {_most(fallen)}"
        )
        fix = "report them; MS_DISABLE_KERNEL_BACKOFF=1 ends a job at the first one, with the reason"
        findings.append(warning(SUBJECT, found, fix))
    if cast:
        found = (
            f"{sum(cast.values())} operators of {place} compute in a smaller type than they are given: {_most(cast)}"
        )
        findings.append(warning("kernels' types", found, "report them, with the first lines of the log"))
    return findings or [ok(SUBJECT, f"{len(logs)} logs in {place} name no operator that fell back to the CPU")]


def _count(lines: Iterable[str], fallen: "Counter[str]", cast: "Counter[str]") -> None:
    """Counts operators by kind: `Default/a-A/TopK-op12` is a TopK."""
    for line in lines:
        found = _NODE.search(line)
        if found:
            fallen[_kind(found[1])] += 1
        found = _CAST.search(line) if REDUCED in line else None
        if found:
            cast[f"{_kind(found[1])} {found[2]} to {found[3]}"] += 1


def _kind(node: str) -> str:
    return node.rsplit("/", 1)[-1].rsplit("-op", 1)[0]


def _most(counts: "Counter[str]") -> str:
    shown = [f"{kind} ({number})" for kind, number in counts.most_common(SHOWN)]
    return ", ".join(shown) + (", ..." if len(counts) > SHOWN else "")
