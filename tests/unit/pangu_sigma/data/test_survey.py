"""Which documents are held out. What a source holds is tested with `prepare`, which reads it."""

import numpy as np

from pangu_sigma.data.survey import held_out


def test_held_out_takes_the_lowest_share_of_hashes() -> None:
    hashes = np.arange(0, 2**64, 2**60, dtype=np.uint64)  # 16 hashes in equal steps
    assert held_out(hashes, 0.25).tolist() == [True] * 4 + [False] * 12


def test_each_side_gets_a_document() -> None:
    high = np.array([2**63 + 5, 2**63 + 1, 2**63 + 1], np.uint64)
    assert held_out(high, 0.1).tolist() == [False, True, True]
    low = np.array([3, 9, 3], np.uint64)
    assert held_out(low, 0.1).tolist() == [True, False, True]
