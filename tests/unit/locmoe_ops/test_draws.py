"""A rank's part of a parameter's numbers, drawn without the rest, against the whole cut up, to the bit."""

import numpy as np
import pytest

from locmoe_ops import draws
from locmoe_ops.errors import InputError
from locmoe_ops.shard_spec import ShardSpec

STD = 0.0137


def whole(seed, shape):
    """As initial weights were drawn at first: all of it, in one call."""
    return (np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * STD).astype(np.float32)


@pytest.mark.parametrize("stretch", [1 << 20, 50, 7, 1])  # whole rows at a time, or rows that pass by in pieces
@pytest.mark.parametrize(
    ("shape", "axis", "parts", "blocks"),
    [
        ((24, 10), 0, 4, 1),  # query, key, value, first map of a feed-forward network
        ((24, 10), 0, 3, 2),  # word table with a slot a domain
        ((10, 24), 1, 4, 1),  # maps onto the residual stream
        ((6, 16), 1, 8, 1),  # an expert's w_in
        ((16, 6), 0, 8, 1),  # an expert's w_out
        ((2, 12, 3), 1, 2, 3),
        ((24, 10), 0, 1, 1),
        ((4000, 16), 0, 8, 1),  # hundreds of numbers take NumPy more than one word
    ],
)
def test_a_part_is_cut_from_the_same_numbers(monkeypatch, stretch, shape, axis, parts, blocks):
    monkeypatch.setattr(draws, "STRETCH", stretch)
    seed = np.random.SeedSequence((5, 1))
    for shard in range(parts if len(shape) == 2 and shape[0] < 100 else 2):
        part = ShardSpec(axis, shard, parts, blocks)
        np.testing.assert_array_equal(draws.normal_part(seed, shape, STD, part), part.cut(whole(seed, shape)))


def test_the_whole_is_what_it_was():
    np.testing.assert_array_equal(draws.normal_part(7, (30, 4), STD), whole(7, (30, 4)))


def test_unequal_parts_are_refused():
    with pytest.raises(InputError, match="multiple of 5"):
        draws.normal_part(1, (12, 3), STD, ShardSpec(0, 0, 5))
