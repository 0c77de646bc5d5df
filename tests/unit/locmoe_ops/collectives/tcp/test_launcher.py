"""Noticing that a process is gone, for a parent and for any other process."""

import os
import subprocess
import sys

from locmoe_ops.collectives.tcp.launcher import LauncherWatch


def test_nobody_to_watch():
    assert not LauncherWatch(None).gone()


def test_the_living_parent():
    assert not LauncherWatch(os.getppid()).gone()


def test_another_process_before_and_after_its_end():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watch = LauncherWatch(process.pid)
    assert not watch.gone()
    process.communicate()
    assert watch.gone()


def test_the_end_of_the_direct_parent():
    """A child that is adopted by another process sees its own parent's number change."""
    script = (
        "import os, time\n"
        "from locmoe_ops.collectives.tcp.launcher import LauncherWatch\n"
        "if os.fork() == 0:\n"
        "    watch = LauncherWatch(os.getppid())\n"
        "    print(watch.gone(), flush=True)\n"
        "    limit = time.monotonic() + 10\n"
        "    while not watch.gone() and time.monotonic() < limit: time.sleep(0.01)\n"
        "    print(watch.gone(), flush=True)\n"
        "else:\n"
        "    time.sleep(0.5)\n"
    )
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 4))
    output = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": root},
    ).stdout
    assert output.split() == ["False", "True"]
