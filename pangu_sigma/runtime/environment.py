"""`environment.json` of a run folder: when, where and with what a run was started, one entry a start.

A resumed run adds an entry. No environment variable is written down, since any may hold a secret.
"""

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import psutil

from locmoe_ops.topology import Topology
from pangu_sigma.runtime.files import set_aside, write_atomically
from pangu_sigma.runtime.messages import log
from pangu_sigma.runtime.processes import usable_cpus
from pangu_sigma.runtime.strict_json import dumps, read_object
from pangu_sigma.runtime.versions import DISTRIBUTIONS, PACKAGES, installed_version, program_version

LAUNCHES = "launches"
CANN_HOMES = ("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann")
DRIVER_INFO = "/usr/local/Ascend/driver/version.info"
GIT_S = 10.0  # a repository on a slow file system must not keep a job from starting


def describe_launch(topology: Topology, chip: Optional[str], code: str, resumed_after: int) -> Dict[str, Any]:
    """What rank 0 knows of a job's start.

    Args:
        topology: the job's ranks.
        chip: of its devices, a name of `pangu_sigma.config.chips.CHIPS`; None: it runs on CPU.
        code: see `code_version`.
        resumed_after: the step that the run resumes after; 0: none.
    """
    now = datetime.now(timezone.utc)
    return {
        "date": now.isoformat(timespec="seconds"),
        "unix": round(now.timestamp(), 3),
        "command": command_line(sys.argv),
        "folder": os.getcwd(),
        "resumed_after_step": resumed_after,
        "ranks": topology.world_size,
        "nodes": topology.nodes,
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cpus": usable_cpus(),
        "memory(B)": psutil.virtual_memory().total,
        "device": "cpu" if chip is None else "ascend",
        "chip": chip,
        "cann": None if chip is None else find_cann(os.environ, name_values)[1] or None,
        "driver": None if chip is None else driver_version(name_values),
        "python": platform.python_version(),
        "packages": {name: found for name in DISTRIBUTIONS for found in [installed_version(name)] if found},
        "version": program_version(),
        "code": code,
        **commit(PACKAGES[1].parent),
    }


def add_launch(path: Path, launch: Mapping[str, Any]) -> None:
    """Adds an entry to `environment.json`, which holds the old entries or all of them, whatever ends the program.

    Args:
        path: of the file. One that holds no list of entries is set aside.
        launch: of `describe_launch`.

    Raises OSError.
    """
    before = launches(path)
    if not before and path.exists():
        log.warning("%s: an %s without a list of launches, set aside", set_aside(path), path.name)
    write_atomically(path, dumps({LAUNCHES: [*before, launch]}, indent=1) + "\n")


def launches(path: Path) -> List[Dict[str, Any]]:
    """The entries of `environment.json` at `path`, the oldest first; none if it is missing or something else."""
    found = read_object(path).get(LAUNCHES)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        return []
    return found


def command_line(words: List[str]) -> str:
    """As a user would type it; `words` are those of `sys.argv`."""
    program = Path(words[0]).name if words else ""
    own = program in ("pangu-sigma", "__main__.py")
    return shlex.join(["pangu-sigma" if own else program, *words[1:]])


def cpu_model() -> str:
    """The processor's name. Linux alone has it, in a file that psutil does not read; else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()


def commit(root: Path) -> Dict[str, Any]:
    """The commit of the checkout at `root` and whether tracked files differ from it; None where there is no checkout
    there: a wheel's folder may lie in another project's.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != root.resolve():
        return {"commit": None, "changed_since_commit": None}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": _git(root, "rev-parse", "HEAD") or None,
        "changed_since_commit": None if changed is None else bool(changed),
    }


def _git(root: Path, *words: str) -> Optional[str]:
    """What git prints; None if it is not there, fails or does not answer in time."""
    command = ["git", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def name_values(path: str) -> Dict[str, str]:
    """The `name=value` lines of a file; none if it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.strip().strip('"') for name, equals, value in lines if equals}


def find_cann(environ: Mapping[str, str], fields: Callable[[str], Dict[str, str]]) -> Tuple[str, str]:
    """CANN's folder and its version, where MindSpore reads it; an empty version: none was found.

    Args:
        environ: environment variables.
        fields: gives the `name=value` lines of a file, as `name_values` does.
    """
    named = environ.get("ASCEND_HOME_PATH") or environ.get("ASCEND_TOOLKIT_HOME")
    places = (named,) if named else CANN_HOMES
    found = ((place, fields(f"{place}/compiler/version.info").get("Version", "")) for place in places)
    return next((one for one in found if one[1]), (places[0], ""))


def driver_version(fields: Callable[[str], Dict[str, str]]) -> Optional[str]:
    """Of the Ascend driver. `fields`: see `find_cann`."""
    info = fields(DRIVER_INFO)
    return info.get("package_version") or info.get("Version")
