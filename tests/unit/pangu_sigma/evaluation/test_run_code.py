import time

import pytest

from helpers.processes import is_running
from pangu_sigma.evaluation.run_code import ends_well

# What a model might write, and whether it counts.
PROGRAMS = [
    ("def f(x):\n    return x + 1\nassert f(1) == 2\n", True),
    ("def f(x):\n    return x\nassert f(1) == 2\n", False),
    ("def f(:\n", False),
    ("import os\nos._exit(0)\nassert False\n", False),  # leaves before its checks
    ("raise SystemExit(0)\n", False),
    ("x = bytearray(1 << 36)\n", False),  # more than the memory that it may have
    ("import os\nassert 'HOME' not in os.environ and os.listdir('.') == ['program.py']\n", True),
]


@pytest.mark.parametrize(("program", "expected"), PROGRAMS)
def test_only_a_program_that_runs_to_its_end_counts(program, expected):
    assert ends_well(program) is expected


def test_a_program_that_does_not_end_is_ended_with_what_it_started(tmp_path):
    marker = tmp_path / "children"
    program = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open({str(marker)!r}, "w") as file:
    file.write(str(child.pid))
time.sleep(600)
"""
    assert not ends_well(program, seconds=2.0)
    child = int(marker.read_text())
    end = time.monotonic() + 20.0  # a killed process stays until its parent has waited for it
    while time.monotonic() < end and is_running(child):
        time.sleep(0.02)
    assert not is_running(child)
