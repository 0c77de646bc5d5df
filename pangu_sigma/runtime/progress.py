"""What a user who waits sees: a bar, or the seconds that something takes so far. On a terminal alone; a file gets a
line before and a line after.
"""

import logging
import threading
import time
from contextlib import contextmanager
from typing import Any, Iterator

from tqdm import tqdm

from pangu_sigma.runtime.messages import console, is_other_rank, log

WIDTH = 79
_TICK_S = 1.0


def progress_bar(total: int, what: str, **options: Any) -> "tqdm[Any]":
    """A bar, gone when it is closed; none in a file, on other ranks than the first, or where only warnings are wanted.

    Args:
        total: steps of it. what: stands before it. options: others of tqdm's.
    """
    shape = {"ncols": WIDTH, "leave": False, **options}
    return tqdm(total=total, desc=what, disable=_hidden(), **shape)


@contextmanager
def waiting_for(what: str, level: int = logging.INFO) -> Iterator[None]:
    """Says that something takes long, and then how long it took. On a terminal one line counts the seconds.

    Args:
        what: is done, as in "compiling the step".
        level: of the messages before and after; the line that counts is there for info.
    """
    log.log(level, "%s ...", what, extra={"shown_live": True})
    started, over = time.monotonic(), threading.Event()
    stream = console.stream()
    form = "{desc} ... {elapsed_s:.0f} s"
    with tqdm(desc=what, bar_format=form, ncols=WIDTH, leave=False, file=stream, disable=_hidden()) as line:

        def tick() -> None:
            while not over.wait(_TICK_S):
                line.refresh()

        ticking = threading.Thread(target=tick, daemon=True)
        ticking.start()
        try:
            yield
        finally:
            over.set()
            ticking.join()
    log.log(level, "%s ... %.0f s", what, time.monotonic() - started)


def _hidden() -> Any:
    """What tqdm's `disable` is to be; None leaves it to whether the stream is a terminal."""
    return True if is_other_rank() or not log.isEnabledFor(logging.INFO) else None
