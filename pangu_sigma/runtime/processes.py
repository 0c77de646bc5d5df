"""Commands that this program starts: with this Python, and gone when the program is, however it ends."""

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List

from pangu_sigma.runtime.launch import CLUSTER_VARIABLES, RANK_VARIABLES

END_WAIT_S = 30.0  # for a launcher to end its ranks and take down its network


def with_this_python() -> Dict[str, str]:
    """This environment, in which scripts find the Python that runs this program, and nothing that is left over of
    another job.
    """
    left_over = {*RANK_VARIABLES, *CLUSTER_VARIABLES, "VIRTUAL_ENV"}
    left_over.discard("RANK_TABLE_FILE")  # which says where the nodes are
    environment = {name: value for name, value in os.environ.items() if name not in left_over}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if sys.prefix != sys.base_prefix:
        environment["VIRTUAL_ENV"] = sys.prefix
    return environment


def end_with_children(process: "subprocess.Popen[Any]") -> None:
    """Ends a process started in a session of its own, and all that descends from it: asked first, killed after a
    deadline.

    Ranks have sessions of their own, which a signal to the group does not reach: descendants are listed while their
    parents live.
    """
    if process.poll() is None:
        descendants = _descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_WAIT_S)
        except subprocess.TimeoutExpired:
            descendants |= _descendants(process.pid)
        for pid, born in descendants.items():
            if _started(pid) == born:  # not a later process of the same id
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(END_WAIT_S)


def _descendants(root: int) -> "Dict[int, str]":
    """Ids and start times of the processes below `root` in the tree."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields:
            parents[int(entry.name)] = int(fields[1])
    found: Dict[int, str] = {}
    frontier = {root}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier}
        found.update((pid, _started(pid)) for pid in frontier)
    return found


def _started(pid: int) -> str:
    fields = _stat(pid)
    return fields[19] if fields else ""


def _stat(pid: int) -> List[str]:
    """Fields of /proc/<pid>/stat from the state on (the name before it may hold anything); empty if the process is
    gone.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def end_with_parent() -> None:
    """Asks Linux to end this process when the one that started it dies, however it dies: a launcher with its
    comparison, a rank with its launcher.
    """
    set_parent_death_signal = 1
    with suppress(OSError, AttributeError):  # another system; there the mesh notices that the parent is gone
        _LIBC.prctl(set_parent_death_signal, signal.SIGTERM)


_LIBC = ctypes.CDLL(None)  # looked up here: between fork and exec nothing may be imported
