"""Normal numbers for initial weights: a stream a parameter, of which a rank keeps the part that it holds.

NumPy draws a normal number from one word of its generator or, now and then, from more: which word a number begins with
is known only when those before it have been drawn. A rank that holds a part must therefore have the whole stream pass
by, up to the last number that it holds; but never more of it at a time than `STRETCH` numbers.
"""

import math
from typing import Optional, Sequence, Union

import numpy as np

from locmoe_ops.shard_spec import ShardSpec

STRETCH = 1 << 20  # numbers that are drawn at a time beside those that are kept, 4 MB

Seed = Union[int, np.random.SeedSequence]


def normal_part(seed: Seed, shape: Sequence[int], std: float, part: Optional[ShardSpec] = None) -> np.ndarray:
    """Of normal numbers of a whole array those that a rank holds, the same whatever the part: <float32>[*own shape].

    Args:
        seed: of the stream. shape: of the whole array. std: standard deviation.
        part: what the rank holds of it; None: all.

    Raises InputError where the parts would not be equal.
    """
    generator = np.random.default_rng(seed)
    if part is None:
        drawn = generator.standard_normal(shape, dtype=np.float32)
    else:
        own = part.shape_of(shape)
        drawn = np.empty(own, np.float32)
        # A part is stretches of neighbours, at equal distances in the whole: (r, n) <- (..., blocks * n / num_shards,
        # ...)
        _draw_stretches(generator, drawn.reshape(-1, math.prod(own[part.axis :]) // part.blocks), part)
    drawn *= np.float32(std)
    return drawn


def _draw_stretches(generator: np.random.Generator, kept: np.ndarray, part: ShardSpec) -> None:
    """Draws into `kept` <float32>[r, n] the stretch of this shard in each of r rows of `num_shards` stretches."""
    rows, length = kept.shape
    together = STRETCH // (length * part.num_shards)
    if together:  # whole rows at a time
        drawn = np.empty((min(together, rows), part.num_shards, length), np.float32)
        for first in range(0, rows, together):
            taken = kept[first : first + together]
            generator.standard_normal(out=drawn[: len(taken)], dtype=np.float32)
            taken[:] = drawn[: len(taken), part.shard]
        return
    passed = np.empty(STRETCH, np.float32)
    for number, row in enumerate(kept):
        behind = (part.num_shards - 1) * length if number else part.shard * length  # the last row's, and this one's
        for start in range(0, behind, STRETCH):
            generator.standard_normal(out=passed[: min(STRETCH, behind - start)], dtype=np.float32)
        generator.standard_normal(out=row, dtype=np.float32)
