"""Errors that a user sees, besides `locmoe_ops.errors`: what input, a disk, a run or another program did."""

from locmoe_ops.errors import InputError


class DamagedCheckpoint(InputError):
    """A checkpoint is not what was written: a file is missing, cut off or changed. The one before it may be whole."""


class OutputNotWritten(RuntimeError):
    """The disk refuses what a run has to write: it is full, or may no longer be written to."""


class CheckpointNotWritten(OutputNotWritten):
    """A checkpoint could not be written; those that were written before it are untouched."""


class ToolFailed(Exception):
    """One line that says what failed and why, where the input is not what is wrong."""


class RunFailed(Exception):
    """A run of a comparison failed.

    Args:
        run: its name.
        line: what it said.
        status: the exit status that the comparison ends with.
    """

    def __init__(self, run: str, line: str, status: int) -> None:
        super().__init__(f"{run}: {line}")
        self.status = status


class RunDiverged(RuntimeError):
    """A run diverged, and ended: at which step, what its loss was before, what to try. Exit status 1, one line."""
