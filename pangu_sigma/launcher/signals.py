"""Signals that come while a job runs, noted here and heeded by who waits for the job.

SIGINT ends a job at once. SIGTERM and SIGHUP tell it to stop, with a checkpoint; told twice, it ends at once.
"""

import signal
from types import FrameType, TracebackType
from typing import Any, Dict, List, Optional, Type

_HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndNow(Exception):
    """The job ends at once, and nobody needs to be told why. Attributes: status, the launcher's exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Signals:
    """A context, which may be entered again within, in which signals are noted. One that was ignored before, as by
    nohup, stays ignored.

    Args:
        interrupt_stops: whether SIGINT stops the job, as SIGTERM does, in place of ending it.
    """

    def __init__(self, interrupt_stops: bool = False) -> None:
        self._interrupt_stops = interrupt_stops
        self._came: List[int] = []
        self._before: Dict[int, Any] = {}
        self._entered = 0

    def __enter__(self) -> "Signals":
        self._entered += 1
        for number in _HEEDED if self._entered == 1 else ():
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._entered -= 1
        for number, handler in self._before.items() if self._entered == 0 else ():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self._came.append(number)

    @property
    def status(self) -> Optional[int]:
        """The exit status that the first signal gives; None: there was none."""
        return 128 + self._came[0] if self._came else None

    def stops(self) -> int:
        """How often the job was told to stop. Raises EndNow: it is to end at once."""
        if signal.SIGINT in self._came and not self._interrupt_stops:
            raise EndNow(128 + signal.SIGINT)
        if len(self._came) > 1:
            raise EndNow(128 + signal.SIGTERM)
        return len(self._came)
