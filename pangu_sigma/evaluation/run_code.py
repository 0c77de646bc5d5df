"""Runs a program that a model wrote, in a process of its own. This is no sandbox: the program can read and write what
its user can.
"""

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

TIME_LIMIT_S = 10.0
MEMORY_LIMIT = 2 << 30  # bytes of address space
_ENDED_WELL = 113  # a status that no program gives by chance, as it would 0 by leaving before its checks

_RUNNER = f"""
import os, resource, sys
for limit, value in ((resource.RLIMIT_AS, {MEMORY_LIMIT}), (resource.RLIMIT_CPU, int(sys.argv[2])),
                     (resource.RLIMIT_FSIZE, 1 << 20), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(limit, (value, value))
try:
    exec(compile(open(sys.argv[1], encoding="utf-8").read(), "program", "exec"), {{"__name__": "program"}})
except BaseException:
    os._exit(1)
os._exit({_ENDED_WELL})
"""


def ends_well(program: str, seconds: float = TIME_LIMIT_S) -> bool:
    """Whether the Python program runs to its end without an exception, within `seconds` and the limits above.

    It runs in an empty folder and environment, without input or output; what it started ends with it, unless that left
    its process group.
    """
    with tempfile.TemporaryDirectory(prefix="pangu-sigma-code-") as folder:
        file = Path(folder) / "program.py"
        file.write_text(program, encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _RUNNER, str(file), str(int(seconds) + 1)],
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(seconds) == _ENDED_WELL
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own, which is named by its id
            process.wait()
