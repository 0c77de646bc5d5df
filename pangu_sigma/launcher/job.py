"""The ranks of a job on this machine, however they are started: from their logs' folder to their exit status."""

import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Dict, List, Optional, Sequence, Tuple

from pangu_sigma.launcher.environment import rank_environment, shown_environment
from pangu_sigma.launcher.log_folder import LogFolder, error_line, without_prefix
from pangu_sigma.launcher.plan import LaunchPlan
from pangu_sigma.launcher.signals import EndNow, Signals
from pangu_sigma.runtime.processes import end_with_parent
from pangu_sigma.runtime.reporting import BAD_INPUT, FAILURE, SUCCESS

POLL_S = 0.1
FOLLOW_S = 0.3
END_WAIT_S = 20.0  # what has been killed may take a moment to be gone
_TAG = "LOCMOE_JOB"  # by which all processes of a job are found, those in sessions of their own too

Failure = Tuple[str, int]  # a rank, and the exit code of its process (negative: the signal that ended it)


class RankJob(ABC):
    """The part of a job that this machine has.

    Args:
        plan: of the job.
        logs: where it is logged.
        stop_timeout: seconds after which ranks that were told to stop are killed.
    """

    def __init__(self, plan: LaunchPlan, logs: LogFolder, stop_timeout: int) -> None:
        self.plan, self.logs = plan, logs
        self._stop_timeout = stop_timeout
        self._stop_at: Optional[float] = None
        self._tag = token_hex(8)
        self._children: List[subprocess.Popen[bytes]] = []

    # ---- what a launcher says

    @abstractmethod
    def settings(self) -> Dict[str, str]:
        """Variables that all ranks are given besides `rank_environment` and the secret."""

    @abstractmethod
    def shown_commands(self) -> List[str]:
        """A dry run's lines of what would be started."""

    @abstractmethod
    def start(self, environment: Dict[str, str]) -> None:
        """Starts what makes the ranks, by `spawn`. `environment`: what all of it is given."""

    @abstractmethod
    def poll(self) -> Optional[int]:
        """0 if all has ended well, another status if not; None: not all has ended."""

    @abstractmethod
    def first_exit(self) -> Optional[Failure]:
        """The process that failed first, for a rank that reported nothing; None: unknown."""

    # ---- the same for all

    def shown(self) -> List[str]:
        """The lines of a dry run."""
        lines = shown_environment(rank_environment(self.plan.ranks_per_node))
        return lines + self.shown_commands()

    def run(self, signals: Signals) -> int:
        """Runs the ranks to their end, with the first one's log on the terminal; returns the job's exit status.

        Raises InputError: the log folder cannot be made.
        """
        self.logs.make()
        print(f"logs: {self.logs.path}", flush=True)
        follower = LogFollower(self.logs.log_of(self.plan.own_ranks[0]))
        try:
            secret = {"LOCMOE_MESH_SECRET": self.plan.meeting.secret, _TAG: self._tag}
            self.start({**rank_environment(self.plan.ranks_per_node), **self.settings(), **secret})
            follower.start()
            status = self._await(signals)
        except EndNow as end:
            return end.status
        finally:
            self._end_all()
            follower.finish()
        return self._finish(status)

    def spawn(self, command: Sequence[str], environment: Dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
        """Starts a process that ends with this one, even if this one is killed outright.

        Args:
            command: its words.
            environment: all of it.
            log: file for what it prints.
        """
        with open(log, "wb") as out:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is for the launcher
                preexec_fn=kill_with_parent,
            )
        self._children.append(process)
        return process

    def kill_children(self) -> None:
        """Kills what `spawn` has started and still runs."""
        for process in self._children:
            with suppress(ProcessLookupError):
                process.kill()

    def _await(self, signals: Signals) -> int:
        """Waits for the end of all. Raises EndNow: a signal, or its deadline, does not wait for it."""
        while (status := self.poll()) is None:
            if signals.stops() and self._stop_at is None:
                self._stop()
            if self._stop_at is not None and time.monotonic() >= self._stop_at:
                raise EndNow(128 + signal.SIGTERM)
            time.sleep(POLL_S)
        return status

    def _stop(self) -> None:
        """Tells the ranks to stop: they end with the step that they are in, and a checkpoint. Before all of them run
        there is nothing to keep.
        """
        processes = self.logs.processes()
        if len(processes) != self.plan.ranks_per_node:
            raise EndNow(128 + signal.SIGTERM)
        self._stop_at = time.monotonic() + self._stop_timeout
        for process in processes.values():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGTERM)

    def _end_all(self) -> None:
        """Kills every process of this job that is left."""
        deadline = time.monotonic() + END_WAIT_S
        while (left := _processes_tagged(self._tag)) and time.monotonic() < deadline:
            for process in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(POLL_S)
        self.kill_children()
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(END_WAIT_S)

    def _finish(self, status: int) -> int:
        """The job's exit status; shows its first failure. Ranks that a signal ended are no failure where they were told
        to stop.
        """
        if status == SUCCESS:
            return SUCCESS
        reported, ranks = self.logs.failures(), self.plan.own_ranks
        if self._stop_at is not None and not reported:
            return 128 + signal.SIGTERM
        if reported:
            status, line = reported[0][1:]
        else:  # no rank said anything: how their processes ended is all there is
            status, found = FAILURE, self.first_exit()
            line = error_line(f"the ranks could not be started, see {self.logs.path}")
            if found is not None:
                rank, code = found
                how = f"killed by signal {-code}" if code < 0 else f"ended with status {code}"
                line = error_line(f"rank {rank}: {how}, see {self.logs.path}")
        if status == BAD_INPUT:
            self.logs.remove_if_empty(ranks[0])
        self.logs.complete(ranks, without_prefix(line))
        print(line, file=sys.stderr, flush=True)
        return status


def kill_with_parent() -> None:
    end_with_parent(signal.SIGKILL)


def _processes_tagged(tag: str) -> List[int]:
    """Ids of the processes that have the job's tag in their environment."""
    wanted, found = f"{_TAG}={tag}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is not ours
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


class LogFollower(threading.Thread):
    """Shows what is written to a file, from when it is there.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path, self._ended, self._shown = path, threading.Event(), 0

    def run(self) -> None:
        while not self._ended.wait(FOLLOW_S):
            if not self._show():
                return
        self._show()

    def finish(self) -> None:
        """Shows the rest and ends."""
        self._ended.set()
        if self.ident is not None:  # it has been started
            self.join(END_WAIT_S)

    def _show(self) -> bool:
        """Shows what has come; False: nobody reads it any more. Not through Python's own output, which would try once
        more at the program's end.
        """
        with suppress(FileNotFoundError), open(self._path, "rb") as file:
            file.seek(self._shown)
            while text := file.read(1 << 16):
                self._shown += len(text)
                while text:
                    try:
                        text = text[os.write(1, text) :]
                    except OSError:
                        return False
        return True
