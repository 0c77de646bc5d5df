"""Processes of the machine, as tests ask for them."""

from typing import List

import psutil


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended: one that waits for its parent to ask has."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def command_lines_with(text: str) -> List[str]:
    """Command lines of the running processes that have `text` in theirs."""
    lines = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    return [line for line in lines if text in line]
