"""A comparison as its reports see it: which runs it has, and where each of them left its files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.strict_json import read_object

SINGLE_PHASE = "all"


@dataclass(frozen=True)
class SimulatedCluster:
    """`nodes` > 1 are simulated on this machine; `rate` (as `tc` spells it) limits each node's link; `pin` gives nodes
    own cores.
    """

    nodes: int
    ranks_per_node: int
    rate: Optional[str]
    pin: bool


@dataclass(frozen=True)
class ComparedRun:
    """One training run. `overrides` are `--set` texts, all but the run directory; `settings` is a hash of all that
    decides the outcome.
    """

    phase: str
    variant: str
    seed: int
    cluster: SimulatedCluster
    overrides: Tuple[str, ...]
    config: Config
    settings: str

    @property
    def name(self) -> str:
        return f"{self.phase}/{self.variant}/seed_{self.seed}"


@dataclass(frozen=True)
class Comparison:
    """A comparison, checked. `runs` are in the order of execution; `variants` in that of the file."""

    file: str
    base: str
    variants: Tuple[str, ...]
    baseline: str
    phases: Tuple[str, ...]
    warmup_steps_ignored: int
    run_timeout: float
    runs: Tuple[ComparedRun, ...]

    @property
    def quality_phase(self) -> str:
        return self.phases[0]

    @property
    def time_phase(self) -> str:
        return self.phases[-1]


NOTE, SUMMARY, COUNTERS = "run.json", "summary.json", "interfaces.json"


def folder_of(output: Path, run: ComparedRun) -> Path:
    return output / "runs" / run.phase / run.variant / f"seed_{run.seed}"


def is_finished(run: ComparedRun, folder: Path) -> bool:
    """True if the folder holds this run, with these settings, whole."""
    note = read_object(folder / NOTE)
    return (
        note.get("settings") == run.settings and note.get("status") != "failed" and bool(read_object(folder / SUMMARY))
    )
