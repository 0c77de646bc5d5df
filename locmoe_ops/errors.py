"""The two errors that users see: what they can fix (`InputError`) and what a peer did (`CollectiveError`)."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """Something the user gave is wrong: the message says what, where (key path or file) and what was expected."""


class CollectiveError(RuntimeError):
    """A collective failed or missed its deadline: the message names this rank, operation, group and peer."""


def rank_names(ranks: Sequence[int]) -> str:
    """Ranks as errors name them: `rank 3`, `ranks 1, 2`."""
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
