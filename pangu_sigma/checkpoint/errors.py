"""What can be wrong with a checkpoint, apart from what was asked of it."""

from locmoe_ops.errors import InputError


class DamagedCheckpoint(InputError):
    """A checkpoint is not what was written: a file is missing, cut off or changed. The one before it may be whole."""


class CheckpointNotWritten(RuntimeError):
    """A checkpoint could not be written; those that were written before it are untouched."""
