"""A rank must not outlive the process that started it."""

from __future__ import annotations

import os


class LauncherWatch:
    """Notices the end of process `pid`, which started this one; None: of nothing.

    Where `pid` is not this process's parent (a wrapper stands between), its existence is asked for.
    """

    def __init__(self, pid: int | None) -> None:
        self.pid = pid
        self._direct = pid == os.getppid()

    def gone(self) -> bool:
        """Whether the process has ended."""
        if self.pid is None:
            return False
        if self._direct:
            return os.getppid() != self.pid
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False
