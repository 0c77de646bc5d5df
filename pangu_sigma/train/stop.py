"""SIGTERM as a request: the run ends after the step that it is in, with a checkpoint, and exit status 0."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Optional, Type


class StopRequest:
    """Notes SIGTERM while it is entered; a second one ends the process as it would have without this.

    Ranks may be told at different moments, or only one of them: they agree through the sums of each step
    (`HostCounters.stops`).
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python lets no other set a handler
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self.asked = True
        signal.signal(signal.SIGTERM, self._before)
