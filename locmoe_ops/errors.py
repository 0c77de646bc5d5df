"""The two errors that users see: what they can mend (`InputError`) and what a peer did (`CollectiveError`)."""


class InputError(ValueError):
    """Something the user gave is wrong: the message says what, where (key path or file) and what was expected."""


class CollectiveError(RuntimeError):
    """A collective failed or missed its deadline: the message names this rank, the operation, the group and the peer."""
