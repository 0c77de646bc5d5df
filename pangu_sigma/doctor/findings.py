"""What the doctor found: one line a check, in the colours of a traffic light, with the mend where there is one."""

import textwrap
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Sequence

WIDTH = 80
_LABEL, _SUBJECT = 5, 13
OK, UNKNOWN, WARNING, FAILURE = "ok", "skip", "warn", "FAIL"
_COLOURS = {OK: "32", UNKNOWN: "33", WARNING: "33", FAILURE: "31"}


@dataclass(frozen=True)
class Finding:
    """`level` one of the four above; `mend` says what to do, where there is something to do."""

    level: str
    subject: str
    found: str
    mend: str = ""

    def to_dict(self) -> Dict[str, Any]:
        return asdict(self)


def ok(subject: str, found: str) -> Finding:
    return Finding(OK, subject, found)


def unknown(subject: str, reason: str, mend: str = "") -> Finding:
    """Something that could not be checked here, and why."""
    return Finding(UNKNOWN, subject, f"not checked: {reason}", mend)


def warning(subject: str, found: str, mend: str) -> Finding:
    return Finding(WARNING, subject, found, mend)


def failure(subject: str, found: str, mend: str) -> Finding:
    return Finding(FAILURE, subject, found, mend)


def lines_of(finding: Finding, colour: bool) -> List[str]:
    """The finding within 80 columns: label, subject, text, and the mend below it; only the label is coloured."""
    label = finding.level.ljust(_LABEL)
    if colour:
        label = f"\033[{_COLOURS[finding.level]}m{label}\033[0m"
    indent, width = " " * (_LABEL + _SUBJECT), WIDTH - _LABEL - _SUBJECT
    text = _wrap(finding.found, width)
    mend = [("-> " if number == 0 else "   ") + line for number, line in enumerate(_wrap(finding.mend, width - 3))]
    if len(finding.subject) >= _SUBJECT:  # a long subject stands alone
        return [label + finding.subject, *(indent + line for line in text + mend)]
    return [label + finding.subject.ljust(_SUBJECT) + text[0], *(indent + line for line in text[1:] + mend)]


def _wrap(text: str, width: int) -> List[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) if text else []


def summary_of(findings: Sequence[Finding]) -> str:
    counts = {level: sum(finding.level == level for finding in findings) for level in _COLOURS}
    return f"{counts[OK]} ok, {counts[WARNING]} to look at, {counts[FAILURE]} failed, {counts[UNKNOWN]} not checked"
