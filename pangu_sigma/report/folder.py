"""A run folder as it is now: read again and again until the run is finished, and each time only what is new of it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import load_config
from pangu_sigma.config.schema import Config
from pangu_sigma.metrics.perplexity import DIVERGED
from pangu_sigma.report.comparison import SUMMARY
from pangu_sigma.runtime.strict_json import read_object

STEP = "progress/step"


@dataclass(frozen=True)
class RunState:
    """What a run has left so far: `records` one a step; `written_s` when the last was written (seconds since 1970; 0:
    none yet).
    """

    folder: Path
    config: Config
    records: List[Dict[str, Any]]
    written_s: float
    has_summary: bool
    diverged_at: int = 0  # step after which the run ended because it diverged, as the summary says; 0: it did not

    @property
    def step(self) -> int:
        """The last finished step; 0 before the first."""
        return int(self.records[-1][STEP]) if self.records else 0

    @property
    def steps(self) -> int:
        return self.config.train.steps

    @property
    def finished(self) -> bool:
        """Whether all steps are done and the summary is written, or the run diverged. A summary alone may be of an
        earlier run in the same folder.
        """
        return self.has_summary and (self.step >= self.steps or self.diverged)

    @property
    def diverged(self) -> bool:
        """Whether the run ended because it diverged, and has not been resumed since from an earlier checkpoint."""
        return 0 < self.diverged_at == self.step


class RunFolder:
    """Reads a run folder.

    Raises InputError: `path` holds no config.yaml, or not that of a run.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._config: Optional[Tuple[int, Config]] = None  # time of the file, content
        self._metrics = _GrowingFile(self.path / "metrics.jsonl")
        if not (self.path / "config.yaml").is_file():
            raise InputError(f"{path}: found no config.yaml in it, expected the folder of a run (train.output_dir)")
        self.read()

    def read(self) -> RunState:
        records, written_s = self._metrics.read()
        summary = read_object(self.path / SUMMARY)
        diverged_at = summary.get(STEP) if summary.get("status") == DIVERGED else None
        return RunState(
            self.path,
            self._read_config(),
            records,
            written_s,
            bool(summary),
            diverged_at if isinstance(diverged_at, int) else 0,
        )

    def _read_config(self) -> Config:
        """Read again only if the run was started again."""
        file = self.path / "config.yaml"
        try:
            time = file.stat().st_mtime_ns
        except OSError as error:
            raise InputError(
                f"{file}: cannot be read ({error.strerror}), expected the configuration of a run"
            ) from None
        if self._config is None or self._config[0] != time:
            self._config = time, load_config(file)
        return self._config[1]


class _GrowingFile:
    """The whole lines of metrics.jsonl: what a run is writing just now, or left half-written, is not one yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: Tuple[int, int] = (0, 0)
        self._read_bytes = 0
        self._records: List[Dict[str, Any]] = []

    def read(self) -> Tuple[List[Dict[str, Any]], float]:
        """All records so far, and when the file was last written to."""
        try:
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                if self._identity != identity or status.st_size < self._read_bytes:  # the run was started again
                    self._identity, self._read_bytes, self._records = identity, 0, []
                file.seek(self._read_bytes)
                new = file.read()
        except OSError:
            self._identity, self._records = (0, 0), []
            return [], 0.0
        whole = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        self._records = list(self._records)  # who read before keeps what he got
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # no line of metrics
            step = record.get(STEP) if isinstance(record, dict) else None
            if isinstance(step, int) and not isinstance(step, bool):
                self._records.append(record)
        return self._records, status.st_mtime
