"""Seconds in which this program has run: a machine that was suspended, or a process that was stopped, has not waited
meanwhile.
"""

import threading
import time
from typing import Callable

TICK = 0.05
LONGEST_TICK = 1.0


class _Ticker(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="clock", daemon=True)
        self.total, self._last = 0.0, time.monotonic()
        self._lock = threading.Lock()
        self.start()

    def now(self) -> float:
        with self._lock:
            here = time.monotonic()
            self.total += min(here - self._last, LONGEST_TICK)
            self._last = here
            return self.total

    def run(self) -> None:
        while True:
            time.sleep(TICK)
            self.now()


now: Callable[[], float] = _Ticker().now


class Stuck(RuntimeError):
    """What should happen did not in the time for it: an outcome, and a bad one."""


class NotTried(RuntimeError):
    """The fault could not be made, and says nothing; another call tries it again."""


def wait(condition: Callable[[], object], what: str, limit: float, poll: float = 0.05) -> None:
    """Raises Stuck where the condition does not come about within `limit` seconds."""
    end = now() + limit
    while not condition():
        if now() > end:
            raise Stuck(f"{what}: not seen in {limit:g} s")
        time.sleep(poll)
