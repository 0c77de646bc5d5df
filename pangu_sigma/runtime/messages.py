"""What the program says beside its output: one logger of Python's `logging`, `pangu_sigma`.

Output is what a command was asked for - a table, JSON, a generated text - and is printed. Messages tell what it is
doing and what to mind. They go to the terminal as plain lines (warnings on stderr, behind "pangu-sigma: warning: ";
from other ranks than the first only these), and with time and rank into the log file, where one is kept (`keep_log`).
`--log-level` decides about both. What MindSpore says beside it stands at the end; what it says on Ascend was read in
its source and not seen on a device.
"""

import logging
import os
import sys
from collections import deque
from pathlib import Path
from typing import Deque, Mapping, Optional, TextIO

from tqdm import tqdm

from locmoe_ops.errors import InputError
from pangu_sigma.runtime.launch import is_worker, rank_name

LEVELS = ("debug", "info", "warning", "error")
LEVEL_VARIABLE = "PANGU_SIGMA_LOG_LEVEL"  # for all processes of a shell
_MOST_WAITING = 1000  # messages before there is a log file

log = logging.getLogger("pangu_sigma")


class Console(logging.Handler):
    """Messages on the terminal, or where a launcher keeps what a rank prints.

    The streams are looked up for each message, since tests and notebooks replace them. A progress bar that stands there
    makes way for the line.

    Attributes:
        on_stdout: whether messages that are no warnings go to stdout; else stdout is the command's output alone.
    """

    on_stdout = True

    def stream(self) -> TextIO:
        """Where messages go that are no warnings."""
        return sys.stdout if self.on_stdout else sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        warns = record.levelno >= logging.WARNING
        stream = sys.stderr if warns else self.stream()
        if getattr(record, "shown_live", False) and stream.isatty():
            return
        rank = f"rank {rank_name()}: " if is_other_rank() else ""
        before = f"pangu-sigma: {record.levelname.lower()}: {rank}" if warns else ""
        tqdm.write(before + record.getMessage(), file=stream)
        stream.flush()


class LogFile(logging.Handler):
    """Messages in a file, with time and rank; until there is one they wait for it.

    A disk that takes no more ends the log, with a warning, and not the run.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: Deque[logging.LogRecord] = deque(maxlen=_MOST_WAITING)
        self._file: Optional[TextIO] = None

    def emit(self, record: logging.LogRecord) -> None:
        self._waiting.append(record)
        if self._file is None:
            return
        try:
            while self._waiting:
                for line in self.format(self._waiting[0]).splitlines():
                    self._file.write(line + "\n")
                self._waiting.popleft()
            self._file.flush()
        except OSError as error:
            name = self._file.name
            self.end()
            log.warning("%s: the log ends here, as it cannot be written (%s)", name, error.strerror or error)

    def begin(self, path: Path) -> None:
        """Raises OSError where the file cannot be made."""
        self.end(drop=False)
        self.setFormatter(logging.Formatter(f"%(asctime)s rank {rank_name()} %(levelname)s %(message)s"))
        self._file = open(path, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115

    def end(self, drop: bool = True) -> None:
        """From now on messages wait for another file. `drop`: not those from before."""
        if drop:
            self._waiting.clear()
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:  # what could not be written cannot be written now
                pass

    @property
    def is_kept(self) -> bool:
        return self._file is not None


console, log_file = Console(), LogFile()
log.propagate = False  # to handlers of the root, which would print everything twice
log.setLevel(logging.INFO)
log.addHandler(console)
log.addHandler(log_file)


def set_up_messages(level: Optional[str] = None, on_stdout: bool = True) -> None:
    """How much is said from now on, and where; a log file that was kept ends.

    Args:
        level: one of `LEVELS`; None: as PANGU_SIGMA_LOG_LEVEL in the environment says, else info.
        on_stdout: see `Console`.

    Raises:
        InputError: the environment names no level.
    """
    log_file.end()
    console.on_stdout = on_stdout
    console.setLevel(logging.WARNING if is_other_rank() else logging.NOTSET)
    log.setLevel(logging.INFO)  # also where the next line is refused
    name = level or os.environ.get(LEVEL_VARIABLE) or "info"
    if name not in LEVELS:
        raise InputError(f"environment variable {LEVEL_VARIABLE}: found '{name}', expected one of {', '.join(LEVELS)}")
    log.setLevel(name.upper())


def keep_log(output_dir: str) -> None:
    """Keeps messages in a file from now on, with those that wait for one: `rank_N.log`, for a rank in the folder of
    logs that its launcher gives it, for a process alone in a new folder `<output_dir>/logs/launch_<n>`.

    Ranks that msrun alone started keep none, since nothing tells them of a common folder. Where the file cannot be made
    there is a warning.
    """
    try:
        if not is_worker():
            folder = _new_launch_folder(Path(output_dir) / "logs")
        elif "LOCMOE_LOG_DIR" in os.environ:
            folder = Path(os.environ["LOCMOE_LOG_DIR"])
        else:
            return
        log_file.begin(folder / f"rank_{rank_name()}.log")
    except OSError as error:
        log.warning("%s: no log is kept, as it cannot be made (%s)", error.filename or output_dir, error.strerror)


def end_log() -> None:
    """Keeps messages in no file from now on. Without it an error that ends the program still gets into the file."""
    log_file.end()


def note_error(line: str, error: BaseException, expected: bool) -> None:
    """Puts an error, of which the user is told otherwise, into the log file, if one is kept.

    Args:
        line: what the user is told. error: it; its traceback is kept unless it was `expected`.
    """
    if log_file.is_kept:
        trace = None if expected else (type(error), error, error.__traceback__)
        log_file.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, line, (), trace))


def is_other_rank() -> bool:
    """Whether this process is a rank whose messages the first rank tells for all."""
    return is_worker() and rank_name() != "0"


def _new_launch_folder(logs: Path) -> Path:
    """The first that is free; another process may be looking for one, too."""
    logs.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = logs / f"launch_{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


# ---- what MindSpore says
#
# Its log level is in the environment, which it reads when it is imported. On Ascend an operator without a kernel for
# the device runs on the CPU, with copies there and back, and nothing but a line of level INFO of the module DEVICE says
# so (MindSpore's TryBackoffCpu; read in its source, not seen on a device). Casts to a smaller type, which kernels ask
# for, are warnings. `pangu-sigma doctor CONFIG` looks for both in the logs of ranks. With MS_DISABLE_KERNEL_BACKOFF=1
# such an operator ends the job instead. The launcher sets the same for msrun.

ERRORS, WARNINGS = "3", "2"
DEVICE_MODULE = "{DEVICE:1}"  # level INFO
BACKOFF = "Try to use backoff CPU kernel, node:"  # how the line begins that tells of an operator on the CPU
REDUCED = "reduce precision from"  # how that of a cast goes on


def log_levels(on_device: bool) -> Mapping[str, str]:
    """What to set of the environment where it says nothing: errors alone, for warnings speak to MindSpore's developers;
    on a device also what a user may want to know of his operators.
    """
    return {"GLOG_v": WARNINGS, "MS_SUBMODULE_LOG_v": DEVICE_MODULE} if on_device else {"GLOG_v": ERRORS}


def set_log_level(on_device: bool) -> None:
    """Sets `log_levels`, before MindSpore is imported. `on_device`: whether this machine has Ascend devices."""
    for name, level in log_levels(on_device).items():
        os.environ.setdefault(name, level)
