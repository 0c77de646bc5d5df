"""Processes that this program starts, and the CPUs that it may use. How they are ended: compare/test_runner.py."""

import os
import subprocess
import sys
import time

import pytest

from helpers.processes import is_running
from pangu_sigma.runtime.processes import end_with_children, usable_cpus

TREE = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system with CPU affinities")
def test_only_the_cpus_that_a_process_may_use_count():
    cpu = min(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, {{{cpu}}}); from pangu_sigma.runtime.processes import usable_cpus"
    done = subprocess.run([sys.executable, "-c", f"{program}; print(usable_cpus())"], capture_output=True, text=True)
    assert done.stdout.strip() == "1" and usable_cpus() == len(os.sched_getaffinity(0))


def test_a_process_is_ended_with_children_in_sessions_of_their_own():
    process = subprocess.Popen([sys.executable, "-c", TREE], stdout=subprocess.PIPE, text=True, start_new_session=True)
    child = int(process.stdout.readline())
    end_with_children(process)
    assert process.returncode is not None
    end = time.monotonic() + 20.0  # a killed process stays until its parent, init by now, has asked for it
    while time.monotonic() < end and is_running(child):
        time.sleep(0.02)
    assert not is_running(child)
    end_with_children(process)  # again: nothing is left
