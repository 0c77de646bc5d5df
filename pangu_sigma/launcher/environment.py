"""The environment of a job: what ranks on this machine are given, and what goes to the other nodes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Optional

from locmoe_ops.errors import InputError
from pangu_sigma.config.ascend import has_devices
from pangu_sigma.runtime.launch import RANK_VARIABLES
from pangu_sigma.runtime.messages import log_levels
from pangu_sigma.runtime.processes import with_this_python
from pangu_sigma.runtime.resources import FOLDER, resource
from pangu_sigma.runtime.router_files import VARIABLE

PYTHON = Path(sys.executable).name  # found in PATH, where `rank_environment` puts its folder first
# What the user may set that matters on the other nodes too.
_TO_PASS = ("VIRTUAL_ENV", "OMP_NUM_THREADS", "GLOG_v", "MS_SUBMODULE_LOG_v", "PANGU_SIGMA_LOG_LEVEL", VARIABLE)
# What a dry run shows of the environment.
_SHOWN = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GLOG_v", "MS_SUBMODULE_LOG_v", "PYTHONUNBUFFERED", "PYTHONPATH")


def forget_ranks() -> None:
    """Removes what a launcher tells ranks, which a shell may have left over of another job, from this environment."""
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)


def working_folder() -> str:
    """This folder by the name that the user called it, since the other nodes of a job may know no other."""
    named = os.environ.get("PWD", "")
    return named if os.path.isabs(named) and os.path.exists(named) and os.path.samefile(named, ".") else os.getcwd()


def absolute(path: str) -> str:
    """The path from the root, of one that the user gave."""
    return os.path.normpath(os.path.join(working_folder(), path))


def settings_to_pass() -> List[str]:
    """Shell commands that set on another node what the user has set here, and where this program is."""
    names = [*_TO_PASS, *sorted(name for name in os.environ if name.startswith("HCCL_"))]
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    given.update(_python_path())
    return [f"export {name}={shlex.quote(value)} &&" for name, value in given.items()]


def read_env_file(path: Optional[str]) -> None:
    """Takes over what a shell file sets, such as CANN's set_env.sh: a shell that ssh starts has read no profile.

    Raises InputError: the file cannot be read, or ends the shell that reads it.
    """
    if path is None:
        return
    if not (os.path.isfile(path) and os.access(path, os.R_OK)):
        raise InputError(f"--env-file: cannot read {path}; expected a shell file that sets the environment")
    own = {name: value for name, value in os.environ.items() if name not in ("BASH_ENV", "ENV")}
    command = ["bash", "-c", 'source "$0" 1>&2; env -0', os.path.abspath(path)]
    done = subprocess.run(command, env=own, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    entries = [os.fsdecode(entry) for entry in done.stdout.split(b"\0") if b"=" in entry]
    if done.returncode != 0 or not entries:
        raise InputError(f"--env-file: {path} ended with status {done.returncode}; expected a file that sets variables")
    found = dict(entry.split("=", 1) for entry in entries)
    for name in own.keys() - found.keys():
        del os.environ[name]
    os.environ.update(found)


def rank_environment(local_ranks: int) -> Dict[str, str]:
    """The environment of `local_ranks` ranks that share this machine's cores, without what tells them who they are."""
    environment = with_this_python()
    # More threads than cores make every operator wait for the slowest.
    threads = str(max(1, len(os.sched_getaffinity(0)) // local_ranks))
    environment["OMP_NUM_THREADS"] = environment.get("OMP_NUM_THREADS") or threads
    environment["OPENBLAS_NUM_THREADS"] = environment.get("OPENBLAS_NUM_THREADS") or environment["OMP_NUM_THREADS"]
    for name, level in log_levels(has_devices()).items():  # for msrun too, which is none of this program's
        environment[name] = environment.get(name) or level
    environment["PYTHONUNBUFFERED"] = "1"
    # MindSpore's compiler allocates much. With mimalloc, which the extras `cpu` and `dev` bring, a small run takes a
    # quarter less processor time. It is named without its folder, since LD_PRELOAD knows no folder with a blank.
    libraries = sorted(Path(sys.prefix).glob("lib/python3*/site-packages/cmeel.prefix/lib/libmimalloc.so"))
    if libraries and not environment.get("LD_PRELOAD"):
        before = environment.get("LD_LIBRARY_PATH")
        environment["LD_PRELOAD"] = libraries[0].name
        environment["LD_LIBRARY_PATH"] = str(libraries[0].parent) + (os.pathsep + before if before else "")
    return {**environment, **_python_path()}


def shown_environment(environment: Dict[str, str]) -> List[str]:
    """Lines of a dry run: the variables that decide how ranks run."""
    return [f"{name}={shlex.quote(environment[name])} \\" for name in _SHOWN if environment.get(name)]


def _python_path() -> Dict[str, str]:
    """A checkout goes first, lest another one that is there be run."""
    root, given = resource(""), os.environ.get("PYTHONPATH", "")
    first = given.split(os.pathsep)[0]
    if root.name == FOLDER or (first and os.path.exists(first) and os.path.samefile(first, root)):
        return {"PYTHONPATH": given} if given else {}
    return {"PYTHONPATH": str(root) + (os.pathsep + given if given else "")}
