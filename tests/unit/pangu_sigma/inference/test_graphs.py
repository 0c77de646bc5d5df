import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.inference.graphs import bucket_of, length_buckets


def test_buckets_end_at_the_models_length():
    assert length_buckets(1024) == (32, 64, 128, 256, 512, 1024)
    assert length_buckets(100) == (32, 64, 100)
    assert length_buckets(32) == (32,)
    assert length_buckets(12) == (12,)


def test_the_smallest_that_is_enough():
    assert [bucket_of(positions, 100) for positions in (1, 32, 33, 64, 65, 100)] == [32, 32, 64, 64, 100, 100]
    with pytest.raises(InputError, match="101 positions do not fit model.sequence_length"):
        bucket_of(101, 100)
