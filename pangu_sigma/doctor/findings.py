"""What the doctor found: one line a check, in the colours of a traffic light, with the fix where there is one."""

import textwrap
from dataclasses import dataclass
from typing import Dict, List, Sequence

WIDTH = 80
_LABEL, _SUBJECT = 5, 13
OK, UNKNOWN, WARNING, FAILURE = "ok", "skip", "warn", "FAIL"
_COLOURS = {OK: "32", UNKNOWN: "33", WARNING: "33", FAILURE: "31"}


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: one of the four above.
        subject: what was looked at, in a word or two.
        found: what is there, or why it could not be checked.
        fix: what to do, where there is something to do.
    """

    level: str
    subject: str
    found: str
    fix: str = ""

    def to_dict(self) -> Dict[str, str]:
        """As `doctor --json` prints it, where the fix is called `mend`."""
        return {"level": self.level, "subject": self.subject, "found": self.found, "mend": self.fix}

    @classmethod
    def from_dict(cls, entry: Dict[str, str]) -> "Finding":
        """The inverse of `to_dict`. Raises KeyError or TypeError where `entry` is something else."""
        return cls(entry["level"], entry["subject"], entry["found"], entry["mend"])


def ok(subject: str, found: str) -> Finding:
    """A check of `subject` that passed, with what was `found`."""
    return Finding(OK, subject, found)


def unknown(subject: str, reason: str, fix: str = "") -> Finding:
    """A `subject` that could not be checked here, the `reason`, and the `fix` that would let it be checked."""
    return Finding(UNKNOWN, subject, f"not checked: {reason}", fix)


def warning(subject: str, found: str, fix: str) -> Finding:
    """A `subject` of which what was `found` may do harm, and the `fix`."""
    return Finding(WARNING, subject, found, fix)


def failure(subject: str, found: str, fix: str) -> Finding:
    """A `subject` of which what was `found` would keep a job from running, and the `fix`."""
    return Finding(FAILURE, subject, found, fix)


def lines_of(finding: Finding, colour: bool) -> List[str]:
    """The `finding` within 80 columns: label (in colour if `colour`), subject, text, and the fix below it."""
    label = finding.level.ljust(_LABEL)
    if colour:
        label = f"\033[{_COLOURS[finding.level]}m{label}\033[0m"
    indent, width = " " * (_LABEL + _SUBJECT), WIDTH - _LABEL - _SUBJECT
    text = textwrap.wrap(finding.found, width, break_on_hyphens=False)
    fix = textwrap.wrap(finding.fix, width - 3, break_on_hyphens=False)
    below = [("-> " if number == 0 else "   ") + line for number, line in enumerate(fix)]
    if len(finding.subject) >= _SUBJECT:  # a long subject stands alone
        return [label + finding.subject, *(indent + line for line in text + below)]
    return [label + finding.subject.ljust(_SUBJECT) + text[0], *(indent + line for line in text[1:] + below)]


def summary_of(findings: Sequence[Finding]) -> str:
    """How many of the `findings` are of each level, as the last line of the text says it."""
    counts = {level: sum(finding.level == level for finding in findings) for level in _COLOURS}
    return f"{counts[OK]} ok, {counts[WARNING]} to look at, {counts[FAILURE]} failed, {counts[UNKNOWN]} not checked"
