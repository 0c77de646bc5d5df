"""What came of each fault, a line of JSON each, and the table of it all."""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from .page import write_table

HEADER = "| fault | tried | detected | recovered | lost | longest |"


@dataclass(frozen=True)
class Outcome:
    """One fault.

    Attributes: part and number (which one); kind (row of the table); detected (it was reported, or what it spoilt was
    refused); recovered (what follows is as if it had not been); lost (something whole is gone, or something wrong was
    taken for right); seconds (until it was over); detail (what was seen).
    """

    part: str
    number: int
    kind: str
    detected: bool
    recovered: bool
    lost: bool
    seconds: float
    detail: str = ""


def draw(part: str, number: int, seed: int) -> random.Random:
    """The choices of one fault follow from its name and the seed, whatever was tried before it."""
    return random.Random(f"{seed}/{part}/{number}")


class Ledger:
    """The file of outcomes; what it holds is not tried again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[Outcome]:
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        return [Outcome(**json.loads(line)) for line in lines]

    def done(self, part: str) -> set[int]:
        return {outcome.number for outcome in self.read() if outcome.part == part}

    def note(self, *outcomes: Outcome) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes))
        for outcome in outcomes:
            words = [word for word in ("detected", "recovered", "lost") if getattr(outcome, word)]
            print(
                f"{outcome.part} {outcome.number}: {outcome.kind}: {', '.join(words) or 'nothing seen'}; "
                f"{outcome.seconds:.1f} s; {outcome.detail}",
                flush=True,
            )


def report(outcomes: list[Outcome], parts: list[str]) -> int:
    """Writes and prints the table, parts in that order; returns the exit status: 1 if something was lost or did not
    recover.
    """
    rows = []
    for part in parts:
        for kind in sorted({outcome.kind for outcome in outcomes if outcome.part == part}):
            those = [outcome for outcome in outcomes if (outcome.part, outcome.kind) == (part, kind)]
            counts = [
                len(those),
                *(sum(getattr(outcome, name) for outcome in those) for name in ("detected", "recovered", "lost")),
            ]
            longest = max(outcome.seconds for outcome in those)
            rows.append(f"| {kind} | {' | '.join(map(str, counts))} | {longest:.{0 if longest >= 10 else 2}f} s |")
    print(write_table("faults", HEADER, rows))
    return int(any(outcome.lost or not outcome.recovered for outcome in outcomes))
