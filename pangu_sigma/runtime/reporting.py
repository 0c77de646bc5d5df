"""What a process says, to people and to pipes: no character ends it, whatever the terminal's encoding; and what went
wrong is told in one line, once, on stderr or in the job's error log.
"""

import io
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from locmoe_ops.errors import CollectiveError, InputError
from pangu_sigma.errors import OutputNotWritten, RunDiverged, ToolFailed
from pangu_sigma.runtime.launch import is_worker, rank_name, started_by_launcher
from pangu_sigma.runtime.messages import note_error
from pangu_sigma.runtime.strict_json import dumps
from pangu_sigma.runtime.versions import missing_package

SUCCESS, FAILURE, BAD_INPUT = 0, 1, 2
# msrun kills all ranks within a second of the first failure it sees; a failed rank stays this long so that its peers,
# which fail for the same reason at nearly the same time, get to say so in their own words.
_GRACE_S = 1.5
_reporting = threading.Lock()


def make_streams_lenient() -> None:
    """Lets standard output and error take any text, and standard input give any bytes; a closed one leads nowhere.

    A character that the encoding lacks (as with PYTHONIOENCODING=ascii or gbk), and half of a surrogate pair in any, is
    written as an escape such as \\u4e2d. Bytes of input that are no text arrive as lone surrogates, which whoever takes
    the text refuses.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # It would become that of a file opened later, and what libraries print would go there. The lowest is taken.
            os.open(os.devnull, os.O_RDWR)
    for name, errors in (("stdin", "surrogateescape"), ("stdout", "backslashreplace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def print_json(value: Any) -> None:
    """Prints a value as JSON, on one line; characters beyond ASCII as they are where the output can be any of them."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("_", "-")
    print(dumps(value, ensure_ascii=encoding not in ("utf-8", "utf8", "utf-8-sig")))


# ---- errors


def report_error(error: BaseException) -> int:
    """Tells the user, once an error (one line; a traceback first if the error is none of those they can act on).

    Under the launcher the line goes to the job's `errors.log`, from which the launcher shows the first and gives
    every rank's log its own. Returns the exit status that fits, there after a moment in which the peers can speak too.
    """
    status = _status(error)
    announce(error)
    if status == FAILURE and is_worker() and "LOCMOE_LOG_DIR" in os.environ:
        time.sleep(_GRACE_S)
    return status


def announce(error: BaseException) -> None:
    """Reports an error ahead of `report_error`, which then stays silent, from any thread."""
    expected = (InputError, CollectiveError, OutputNotWritten, RunDiverged, ToolFailed)
    with _reporting:
        if getattr(error, "_told", False):
            return
        error._told = True  # type: ignore[attr-defined]
        status, missing = _status(error), missing_package(error)
        message = missing or " ".join(str(error).split())
        is_expected = bool(missing) or isinstance(error, expected)
        note_error(message, error, is_expected)
        if not is_expected:
            traceback.print_exception(type(error), error, error.__traceback__)
            rank = f"rank {rank_name()}: " if is_worker() else ""
            message = f"{rank}{type(error).__name__}: {message}"
        line = f"pangu-sigma: error: {message}"
        folder = os.environ.get("LOCMOE_LOG_DIR")
        told = folder and is_worker() and append_line(Path(folder) / "errors.log", rank_name(), str(status), line)
        # Where the folder's name is left over in a shell, nobody reads that log.
        if not told or not started_by_launcher():
            print(line, file=sys.stderr, flush=True)


def _status(error: BaseException) -> int:
    """A missing package counts as bad input: the user can fix it, and a job that is started again misses it again."""
    return BAD_INPUT if isinstance(error, InputError) or missing_package(error) else FAILURE


def leave_now(error: BaseException) -> NoReturn:
    """Reports the error and ends the process at once, from any thread, whatever the main thread is busy with."""
    status = report_error(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def append_line(path: Path, *words: str) -> bool:
    """Adds one line of tab-separated words; one write in append mode keeps several ranks' lines whole and in order."""
    try:
        with open(path, "ab", buffering=0) as log:
            log.write(("\t".join(words) + "\n").encode("utf-8", "backslashreplace"))
    except OSError:
        return False
    return True
