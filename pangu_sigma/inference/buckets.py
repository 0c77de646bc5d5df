"""Static shapes for rows of any length: how many positions a compiled graph has."""

from typing import Tuple

from locmoe_ops.errors import InputError

SHORTEST = 32  # positions of the smallest bucket: shorter ones would save little and cost a compilation each


def length_buckets(sequence_length: int) -> Tuple[int, ...]:
    """Powers of two from SHORTEST on, as far as they are below `sequence_length`, which is the last bucket."""
    found = []
    length = SHORTEST
    while length < sequence_length:
        found.append(length)
        length *= 2
    return (*found, sequence_length)


def bucket_of(positions: int, sequence_length: int) -> int:
    """The smallest bucket with as many positions. Raises InputError where there is none."""
    for length in length_buckets(sequence_length):
        if positions <= length:
            return length
    raise InputError(f"{positions} positions do not fit model.sequence_length ({sequence_length})")
