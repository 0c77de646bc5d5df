"""What can be wrong with a checkpoint, apart from what was asked of it."""

from locmoe_ops.errors import InputError


class DamagedCheckpoint(InputError):
    """A checkpoint is not what was written: a file is missing, cut off or changed. The one before it may be whole."""


class OutputNotWritten(RuntimeError):
    """The disk refuses what a run has to write: it is full, or may no longer be written to."""


class CheckpointNotWritten(OutputNotWritten):
    """A checkpoint could not be written; those that were written before it are untouched."""
