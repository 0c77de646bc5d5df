"""A run as Python sees it: what it was configured to be, what each step measured, what it came to, its page."""

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

from pangu_sigma.checkpoint.folders import finished
from pangu_sigma.config.schema import Config
from pangu_sigma.report.folder import RunFolder
from pangu_sigma.runtime.run_folder import CHECKPOINTS, SUMMARY
from pangu_sigma.runtime.strict_json import read_object


class Run:
    """A run in its folder (`train.output_dir`), finished or not. Everything is read when it is asked for.

    It stands for its folder wherever a path is taken: `evaluate(run)`, `Generator.load(run)`, `Path(run)`.

    Attributes:
        folder: the run's.

    Args:
        folder: see above.

    Raises InputError: the folder holds no `config.yaml`, or not that of a run.
    """

    def __init__(self, folder: Union[str, "os.PathLike[str]"]) -> None:
        self.folder = Path(folder)
        self._reader = RunFolder(str(self.folder))

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def config(self) -> Config:
        """The configuration that it was run with, every key of it."""
        return self._reader.read().config

    @property
    def metrics(self) -> List[Dict[str, Any]]:
        """What each step measured, a mapping of names to numbers a step, as in `metrics.jsonl` (docs/metrics.md)."""
        return self._reader.read().records

    @property
    def summary(self) -> Dict[str, Any]:
        """What the run came to, as in `summary.json`; empty until it is finished."""
        return read_object(self.folder / SUMMARY)

    @property
    def checkpoints(self) -> List[Path]:
        """Folders of its checkpoints, the newest last."""
        return [path for _, path in finished(self.folder / CHECKPOINTS)]

    def report(self, output: Optional[Union[str, "os.PathLike[str]"]] = None) -> Path:
        """Writes the run's HTML page, as `pangu-sigma report` does, and returns its path.

        Args:
            output: its file; None: `report.html` in the run's folder.

        Raises InputError: it cannot be written, or another file is there.
        """
        from pangu_sigma.report.runs import report

        with redirect_stdout(StringIO()):  # the command prints where the page is, the caller is told
            return report([str(self.folder)], None if output is None else os.fspath(output))
