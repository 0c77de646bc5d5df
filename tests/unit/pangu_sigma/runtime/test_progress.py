"""Bars and seconds on a terminal, and lines in a file."""

import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from pangu_sigma.runtime import progress
from pangu_sigma.runtime.messages import set_up_messages

PROGRAM = """
import sys, time
from pangu_sigma.runtime import progress
from pangu_sigma.runtime.messages import log, set_up_messages
set_up_messages(sys.argv[1])
progress._TICK_S = 0.02
with progress.waiting_for("compiling the step"):
    time.sleep(0.2)
with progress.progress_bar(3, "hash") as bar:
    for step in range(3):
        bar.update()
        log.info("step %d", step)
"""


def on_terminal(*arguments, env=None):
    """What a program writes on a terminal of its own, streams together."""
    reader, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-c", PROGRAM, *arguments]
    root = str(Path(__file__).parents[4])
    environment = {**os.environ, "PYTHONPATH": root, "TQDM_MININTERVAL": "0", **(env or {})}
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment) as process:
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(reader, 65536):
                shown += piece
        except OSError:  # the other end is closed
            pass
    os.close(reader)
    assert process.returncode == 0, shown
    return shown.decode()


def left_on_screen(text):
    """Lines as a terminal shows them: what follows a carriage return overwrites what was before it."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        cells = ""
        for part in re.sub(r"\x1b\[A", "", line).split("\r"):
            cells = part + cells[len(part) :]
        lines.append(cells.rstrip())
    return [line for line in lines if line]


def test_a_terminal_counts_seconds_and_shows_bars():
    shown = on_terminal("info")
    assert "compiling the step ... 0 s" in shown and "| 3/3 [" in shown and "0/200" not in shown
    assert left_on_screen(shown) == ["compiling the step ... 0 s", "step 0", "step 1", "step 2"]


@pytest.mark.parametrize(
    ("level", "env"),
    [("warning", {}), ("info", {"MS_ROLE": "MS_WORKER", "RANK_ID": "1"})],
    ids=["only warnings", "another rank"],
)
def test_who_wants_silence_gets_it_on_a_terminal_too(level, env):
    assert on_terminal(level, env=env) == ""


def test_a_file_gets_a_line_before_and_one_after(capsys):
    set_up_messages("info")
    with progress.waiting_for("compiling the step"):
        print("meanwhile")
    with progress.progress_bar(3, "hash") as bar:
        bar.update(3)
    lines = capsys.readouterr()
    assert lines.out.splitlines() == ["compiling the step ...", "meanwhile", "compiling the step ... 0 s"]
    assert lines.err == ""


def test_where_it_fails_it_is_not_told_as_done(capsys):
    with pytest.raises(ZeroDivisionError), progress.waiting_for("compiling the step"):
        raise ZeroDivisionError
    assert capsys.readouterr().out == "compiling the step ...\n"


def test_commands_whose_output_is_on_stdout_wait_on_stderr(capsys):
    set_up_messages("info", on_stdout=False)
    try:
        with progress.waiting_for("compiling"):
            pass
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.splitlines()[0] == "compiling ..."
    finally:
        set_up_messages("info")


def test_a_stream_without_a_descriptor_is_no_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    with progress.waiting_for("compiling"):
        pass
    assert stream.getvalue().splitlines() == ["compiling ...", "compiling ... 0 s"]
