"""A job on several nodes that is started from here: the launcher once on each, over ssh, and what becomes of them.

What ssh starts ends with ssh: its standard input is a leash, the end of which tells the launcher there to stop. The
leash's first line is the job's secret, which a command line would show to everyone.
"""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Callable, Dict, List, Optional

from pangu_sigma.launcher.environment import working_folder
from pangu_sigma.launcher.job import POLL_S, kill_with_parent
from pangu_sigma.launcher.log_folder import LogFolder, error_line
from pangu_sigma.launcher.plan import SECRET, LaunchPlan
from pangu_sigma.launcher.request import LaunchRequest
from pangu_sigma.launcher.signals import EndNow, Signals
from pangu_sigma.runtime.processes import end_with_parent
from pangu_sigma.runtime.reporting import FAILURE, SUCCESS

OWN_END_S = 15.0  # after a node's failure the others get this long to end by themselves, with a report of their own,
TOLD_END_S = 15.0  # and this long once they are told to end
FETCH_S = 60.0  # for the logs of one node
_OF_A_LAUNCH = ("node_0.log", "node_1.log", "node_0", "node_1")
_SSH_FAILED = 255  # ssh's own status
_INTERRUPTED, _STOPPED = 128 + signal.SIGINT, 128 + signal.SIGTERM

OptionsOfNode = Callable[[LaunchRequest, LaunchPlan, int], List[str]]


class NodesOverSsh:
    """A job's nodes, on each of which the launcher runs.

    Args:
        request, plan: of the job.
        logs: the folder of the launch here, in which each node has one of its own.
        options_of_node: what a node's launcher is told of its place.
        settings: shell commands that go before it (see `settings_to_pass`).
    """

    def __init__(
        self,
        request: LaunchRequest,
        plan: LaunchPlan,
        logs: LogFolder,
        options_of_node: OptionsOfNode,
        settings: List[str],
    ) -> None:
        self._request, self._plan, self._logs = request, plan, logs
        self._options_of_node, self._settings = options_of_node, settings
        self._running: Dict[int, subprocess.Popen[bytes]] = {}
        self._leashes: Dict[int, IO[bytes]] = {}
        self._stop_at: Optional[float] = None

    def shown(self) -> List[str]:
        """The lines of a dry run: node by node what is started, and what that would start."""
        lines = []
        for place, node in enumerate(self._plan.nodes):
            started = self._launcher(place) if node.is_own else self._remote(place, self._launcher(place, "--leash"))
            lines += [f"# node {place}: {node.name}", shlex.join(started)]
            done = subprocess.run(
                self._launcher(place, "--dry-run"), env=self._environment(), stdout=subprocess.PIPE, check=False
            )
            lines += [f"  {line}" for line in done.stdout.decode("utf-8", "replace").splitlines()]
        return lines

    def run(self, signals: Signals) -> int:
        """Runs the launcher on every node; returns the first failing node's status. Shows what node 0 prints; what the
        others print goes to node_<R>.log, and their ranks' logs are fetched to node_<R>.

        Raises InputError: the log folder cannot be made.
        """
        self._logs.make(_OF_A_LAUNCH)
        try:
            for place in range(self._plan.node_count):
                self._start(place)
            status = self._await(signals)
        except EndNow as end:
            return end.status
        finally:
            self._end()
        self._fetch_logs()
        return status

    def _launcher(self, place: int, *first: str) -> List[str]:
        """The words that run this launcher on a node, which is told everything. `first`: further options."""
        request, command = self._request, self._plan.command
        words = [sys.executable, "-m", "pangu_sigma", "launch", *first, "--launcher", request.launcher]
        words += self._options_of_node(request, self._plan, place)
        words += ["--log-dir", str(self._logs.path), "--stop-timeout", str(request.stop_timeout)]
        words += ["--env-file", request.env_file] if request.env_file else []
        words += ["--bench", command.bench] if command.bench else []
        words += ["--generate"] if command.generate else []
        words += command.arguments()
        return words + (["--", *command.further] if command.further else [])

    def _remote(self, place: int, command: List[str]) -> List[str]:
        """The words that run a command on another node, in a folder of this one's name."""
        text = f"{' '.join(self._settings)} cd {shlex.quote(working_folder())} && exec {shlex.join(command)}"
        return [*self._request.ssh_command.split(), self._plan.nodes[place].ssh, text.lstrip()]

    def _environment(self) -> Dict[str, str]:
        return {**os.environ, SECRET: self._plan.meeting.secret}

    def _start(self, place: int) -> None:
        shown = place == 0
        with open(os.devnull if shown else self._log_of(place), "wb") as log:
            out = None if shown else log
            if self._plan.nodes[place].is_own:
                self._running[place] = subprocess.Popen(
                    self._launcher(place),
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                    preexec_fn=end_with_parent,
                )
                return
            process = subprocess.Popen(
                self._remote(place, self._launcher(place, "--leash")),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=kill_with_parent,
            )
        self._running[place] = process
        assert process.stdin is not None
        self._leashes[place] = process.stdin
        with suppress(BrokenPipeError):  # who reads it has ended, of which `_await` tells
            process.stdin.write(f"{self._plan.meeting.secret}\n".encode())
            process.stdin.flush()

    def _await(self, signals: Signals) -> int:
        """The status of the first node that fails; returns when all have ended, or have had their time to."""
        status, end = SUCCESS, None
        while self._running:
            for place, process in list(self._running.items()):
                code = process.poll()
                if code is None:
                    continue
                del self._running[place]
                code = 128 - code if code < 0 else code
                if code != SUCCESS:
                    self._report(place, code)
                    status = status or (FAILURE if code > 128 and code not in (_INTERRUPTED, _STOPPED) else code)
                    end = end or time.monotonic() + OWN_END_S
            if end is not None and time.monotonic() > end:
                return status
            if signals.stops() and self._stop_at is None:  # so are the nodes, which stop their ranks, and are awaited
                self._stop_at = time.monotonic() + self._request.stop_timeout + TOLD_END_S
                self._tell_to_stop()
            if self._stop_at is not None and time.monotonic() >= self._stop_at:
                raise EndNow(_STOPPED)
            time.sleep(POLL_S)
        return status

    def _tell_to_stop(self) -> None:
        """Those elsewhere by the end of their leash, those here by a signal."""
        for leash in self._leashes.values():
            with suppress(BrokenPipeError):
                leash.close()
        self._leashes = {}
        for place, process in self._running.items():
            if self._plan.nodes[place].is_own:
                process.terminate()

    def _end(self) -> None:
        """Ends what still runs on the nodes."""
        self._tell_to_stop()
        deadline = time.monotonic() + TOLD_END_S
        for process in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in self._running.values():
            process.kill()
            process.wait()

    def _report(self, place: int, code: int) -> None:
        """Node 0 has shown its own error."""
        if place == 0 and code != _SSH_FAILED:
            return
        printed = self._log_of(place).read_text(encoding="utf-8", errors="replace").splitlines() if place else []
        last = f": {printed[-1]}" if printed else ""
        line = f"node {place} ({self._plan.nodes[place].name}) ended with status {code}{last}"
        print(error_line(line), file=sys.stderr, flush=True)

    def _log_of(self, place: int) -> Path:
        return self._logs.path / f"node_{place}.log"

    def _fetch_logs(self) -> None:
        """Where the nodes share no file system, the logs of their ranks are brought here."""
        for place, node in enumerate(self._plan.nodes):
            folder = self._logs.path / f"node_{place}"
            if node.is_own or folder.exists():
                continue
            tar = self._remote(place, ["tar", "-C", str(self._logs.path), "-cf", "-", folder.name])
            try:
                packed = subprocess.run(
                    tar, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=FETCH_S
                )
                unpack = ["tar", "-C", str(self._logs.path), "-xf", "-"]
                done = subprocess.run(unpack, input=packed.stdout, stderr=subprocess.DEVNULL, timeout=FETCH_S)
                fetched = packed.returncode == 0 and done.returncode == 0
            except (OSError, subprocess.TimeoutExpired):
                fetched = False
            if not fetched:
                print(f"the logs of node {place} stay on {node.name}, in {folder}", file=sys.stderr, flush=True)


def hold_leash() -> None:
    """Takes the secret from standard input, and has the end of that stop this process, as SIGTERM does.

    Ends the process where the leash ends before it has said anything.
    """
    secret = b""
    while not secret.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit(_STOPPED)
        secret += byte
    os.environ[SECRET] = secret.decode("utf-8", "replace").strip()
    threading.Thread(target=_stop_with_leash, daemon=True).start()


def _stop_with_leash() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
