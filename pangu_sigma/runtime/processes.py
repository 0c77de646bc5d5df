"""Commands that this program starts: with this Python, and gone when the program is, however it ends."""

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Set

import psutil

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
        for descendant in descendants:
            with suppress(psutil.NoSuchProcess):  # also where the id is a later process's by now
                descendant.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(END_WAIT_S)


def _descendants(root: int) -> "Set[psutil.Process]":
    """The processes below `root` in the tree; none if it is gone."""
    try:
        return set(psutil.Process(root).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def usable_cpus() -> int:
    """CPUs that this process may run on: a container or a batch system often leaves it fewer than there are."""
    try:
        return len(psutil.Process().cpu_affinity())
    except AttributeError:  # a system without affinities, such as macOS
        return psutil.cpu_count() or 1


def end_with_parent(by: int = signal.SIGTERM) -> None:
    """Asks Linux to end this process, by a signal, when the one that started it dies, however it dies: a launcher with
    its comparison, a rank with its launcher.
    """
    set_parent_death_signal = 1
    with suppress(OSError, AttributeError):  # another system; there the mesh notices that the parent is gone
        _LIBC.prctl(set_parent_death_signal, by)


_LIBC = ctypes.CDLL(None)  # looked up here: between fork and exec nothing may be imported
