"""The folder of a launch's logs: chosen so that none is lost, and removed where a job was refused before it had
anything to show.

`workers.log` has a line a rank as it starts (rank, process), `errors.log` one a failure (rank, exit status, line).
"""

import os
from itertools import count
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.launcher.environment import absolute

ERRORS, WORKERS, MSRUN_LOG, SCHEDULER = "errors.log", "workers.log", "msrun.log", "scheduler.log"
_OF_A_JOB = (ERRORS, WORKERS, "worker_0.log", SCHEDULER, MSRUN_LOG)
_PREFIX = "pangu-sigma: error: "


class LogFolder:
    """Where this node's part of a launch is logged.

    Args:
        output_dir: of the run, in whose `logs` a new folder `launch_<n>` is chosen unless `given`.
        given: the folder that the user wants; None: he does not say.
        node: this node's folder in it, as in node_1; empty: there is one node.
    """

    def __init__(self, output_dir: str, given: Optional[str], node: str) -> None:
        self._output_dir, self._node, self._chosen = output_dir, node, given is None
        self._made: List[Path] = []  # the innermost first
        self.path = self._choose() if given is None else self._absolute(Path(given))

    def _choose(self) -> Path:
        """On a file system that they share the nodes of a launch find the same folder."""
        for number in count(1):
            launch = Path(self._output_dir, "logs", f"launch_{number}")
            own = (launch / self._node, launch / MSRUN_LOG) if self._node else (launch,)  # else other nodes' are there
            if not any(map(os.path.lexists, own)):
                break
        return self._absolute(launch)

    def _absolute(self, launch: Path) -> Path:
        """The ranks write there by this name whatever their working directory."""
        return Path(absolute(str(launch))) / self._node

    def log_of(self, rank: int) -> Path:
        return self.path / f"worker_{rank}.log"

    def make(self, files: Sequence[str] = _OF_A_JOB) -> None:
        """Makes the folder.

        Args:
            files: that a given folder must not hold.

        Raises:
            InputError: it cannot be made, or it holds one of them.
        """
        while True:
            absent = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.mkdir()
            except OSError as error:
                if not (isinstance(error, FileExistsError) and self.path.is_dir()):
                    raise InputError(
                        f"cannot make the log folder {self.path}; expected a writable place ({error.strerror})"
                    ) from None
                if self._chosen:  # another launch was quicker
                    self.path = self._choose()
                    continue
                for file in files:
                    if os.path.lexists(self.path / file):
                        raise InputError(
                            f"--log-dir: {self.path} holds {file} already; expected a new folder"
                        ) from None
            self._made = absent
            return

    def processes(self) -> Dict[int, int]:
        """The process of each rank that runs, by rank."""
        lines = _lines(self.path / WORKERS)
        return {int(rank): int(process) for rank, process in (line.split("\t") for line in lines if "\t" in line)}

    def failures(self) -> List[Tuple[str, int, str]]:
        """What ranks reported, in order: rank, exit status, line."""
        found = [line.split("\t", 2) for line in _lines(self.path / ERRORS)]
        return [(rank, int(status), line) for rank, status, line in (words for words in found if len(words) == 3)]

    def remove_if_empty(self, first_rank: int) -> None:
        """Removes what this launch has made, where the first rank has shown nothing. What was in the folder before, or
        is of anybody else, stays.
        """
        shown = self.log_of(first_rank)
        if not self._made or (shown.exists() and shown.stat().st_size > 0):
            return
        of_ranks = (*self.path.glob("worker_*.log"), *self.path.glob("rank_*.log"))
        for path in (*(self.path / file for file in _OF_A_JOB), *of_ranks):
            path.unlink(missing_ok=True)
        launch = self.path.parent if self._node else self.path
        # Of nodes that share the launch's folder, the last one to leave finds it empty, whichever made it.
        shared = (launch, launch.parent) if self._chosen else ()
        for folder in (*self._made, *shared):
            try:
                folder.rmdir()
            except OSError:
                continue

    def complete(self, ranks: Sequence[int], first_failure: str) -> None:
        """Ends the log of each of `ranks` with that rank's own line, or with why it has none."""
        reported: Dict[str, str] = {}
        for rank, _, line in self.failures():
            reported.setdefault(rank, line)
        for number in ranks:
            log = self.log_of(number)
            if not log.exists():
                continue
            without = f"{_PREFIX}rank {number}: ended without a report of its own; first failure: {first_failure}"
            line = reported.get(str(number), without)
            with open(log, "rb+") as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # a progress bar leaves its line open
                        file.write(b"\n")
                file.write(line.encode("utf-8", "backslashreplace") + b"\n")


def without_prefix(line: str) -> str:
    """What a line says, without how every error begins."""
    return line[len(_PREFIX) :] if line.startswith(_PREFIX) else line


def error_line(text: str) -> str:
    return _PREFIX + text


def _lines(path: Path) -> List[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except OSError:
        return []
