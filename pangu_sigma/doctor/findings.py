"""What the doctor found: one line a check, in the colours of a traffic light, with the fix where there is one."""

from dataclasses import dataclass
from typing import Any, Dict, List, Sequence

from pangu_sigma.runtime.text_table import display_width, pad, wrapped

WIDTH = 79  # of 80 columns: some terminals break a line that fills the last one
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
        without: for want of what the check does not apply, in a few words, as in "no CONFIG"; empty: it applies.
    """

    level: str
    subject: str
    found: str
    fix: str = ""
    without: str = ""

    def to_dict(self) -> Dict[str, Any]:
        """As `doctor --json` prints it, where the fix is called `mend`, and `applies` tells whether the check does."""
        known = {"level": self.level, "subject": self.subject, "found": self.found, "mend": self.fix}
        return {**known, "applies": not self.without, **({"without": self.without} if self.without else {})}

    @classmethod
    def from_dict(cls, entry: Dict[str, Any]) -> "Finding":
        """The inverse of `to_dict`. Raises KeyError or TypeError where `entry` is something else."""
        return cls(entry["level"], entry["subject"], entry["found"], entry["mend"], entry.get("without", ""))


def ok(subject: str, found: str) -> Finding:
    """A check of `subject` that passed, with what was `found`."""
    return Finding(OK, subject, found)


def unknown(subject: str, reason: str, fix: str = "") -> Finding:
    """A `subject` that could not be checked here, the `reason`, and the `fix` that would let it be checked."""
    return Finding(UNKNOWN, subject, f"not checked: {reason}", fix)


def not_applicable(subject: str, without: str, reason: str, fix: str = "") -> Finding:
    """A `subject` that is nothing to check in this job or on this machine.

    Args:
        subject: what would be looked at.
        without: for want of what, in a few words: all such findings are summed up in one line of these.
        reason: the same in full.
        fix: what would let it be checked.
    """
    return Finding(UNKNOWN, subject, f"not checked: {reason}", fix, without)


def warning(subject: str, found: str, fix: str) -> Finding:
    """A `subject` of which what was `found` may do harm, and the `fix`."""
    return Finding(WARNING, subject, found, fix)


def failure(subject: str, found: str, fix: str) -> Finding:
    """A `subject` of which what was `found` would keep a job from running, and the `fix`."""
    return Finding(FAILURE, subject, found, fix)


def lines_of(finding: Finding, colour: bool) -> List[str]:
    """The `finding` within `WIDTH` columns: label (in colour if `colour`), subject, text, and the fix below it."""
    label = finding.level.ljust(_LABEL)
    if colour:
        label = f"\033[{_COLOURS[finding.level]}m{label}\033[0m"
    indent, width = " " * (_LABEL + _SUBJECT), WIDTH - _LABEL - _SUBJECT
    text = wrapped(finding.found, width, break_on_hyphens=False)
    fix = wrapped(finding.fix, width - 3, break_on_hyphens=False)
    below = [("-> " if number == 0 else "   ") + line for number, line in enumerate(fix)]
    if (
        display_width(finding.subject) >= _SUBJECT
    ):  # a long subject stands alone; a node's name may be longer than a line
        first, *more = wrapped(finding.subject, WIDTH - _LABEL, break_on_hyphens=False)
        return [label + first, *(" " * _LABEL + line for line in more), *(indent + line for line in text + below)]
    return [label + pad(finding.subject, _SUBJECT) + text[0], *(indent + line for line in text[1:] + below)]


def shown(findings: Sequence[Finding], verbose: bool) -> List[Finding]:
    """The findings that a reader is shown: in place of the checks that do not apply one finding that says for want of
    what, or (`verbose`) all of them.
    """
    others = [finding for finding in findings if not finding.without]
    absent = len(findings) - len(others)
    if verbose or not absent:
        return list(findings)
    causes = dict.fromkeys(finding.without for finding in findings if finding.without)
    return [*others, Finding(UNKNOWN, f"{absent} check{'s' if absent > 1 else ''}", ", ".join(causes))]


def summary_of(findings: Sequence[Finding], verbose: bool = False) -> str:
    """How many of all `findings` are of each level, as the last line of the text says it. `verbose`: see `shown`."""
    levels = [finding.level for finding in findings if not finding.without]
    absent, hint = len(findings) - len(levels), "" if verbose else " (--verbose)"
    text = f"{levels.count(OK)} ok, {levels.count(WARNING)} to look at, {levels.count(FAILURE)} failed"
    return f"{text}, {levels.count(UNKNOWN)} not checked" + (f"; {absent} do not apply{hint}" if absent else "")
