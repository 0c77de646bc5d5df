"""The machine that the doctor looks at: its files, environment and commands, all of which a test can put elsewhere."""

import ctypes
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, Mapping, Optional, Sequence, Tuple

from pangu_sigma.runtime.environment import name_values

COMMAND_S = 20.0


@dataclass(frozen=True)
class Ran:
    """How a command ended; `status` None: it was not found, or took too long."""

    status: Optional[int]
    output: str = ""
    errors: str = ""


def run_command(command: Sequence[str], seconds: float = COMMAND_S) -> Ran:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Ran(None, errors=f"no answer within {seconds:g} s")
    except OSError as error:
        return Ran(None, errors=error.strerror or str(error))
    return Ran(done.returncode, done.stdout, done.stderr)


def clock_is_synchronised() -> Optional[bool]:
    """What the kernel says of its clock (adjtimex, as a reader); None where it cannot be asked."""
    time_error = 5
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != time_error


@dataclass(frozen=True)
class Machine:
    """`root` is where the file system begins; `run` starts a command and waits for it."""

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    run: Callable[..., Ran] = run_command
    clock: Callable[[], Optional[bool]] = clock_is_synchronised

    def path(self, absolute: str) -> Path:
        return self.root / absolute.lstrip("/")

    def read(self, absolute: str) -> Optional[str]:
        """A file's text; None if it is not there or cannot be read."""
        try:
            return self.path(absolute).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def fields(self, absolute: str) -> Dict[str, str]:
        """The `name=value` lines of a file; none if it cannot be read."""
        return name_values(str(self.path(absolute)))

    @property
    def devices(self) -> Tuple[int, ...]:
        """Numbers of the Ascend devices whose driver is loaded, ascending."""
        names = (path.name[len("davinci") :] for path in self.path("/dev").glob("davinci[0-9]*"))
        return tuple(sorted(int(name) for name in names if name.isdigit()))
