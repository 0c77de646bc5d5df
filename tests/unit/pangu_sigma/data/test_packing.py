import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data.packing import held_out, pack_rows


@given(st.lists(st.lists(st.integers(0, 9), max_size=30), max_size=12), st.integers(1, 9))
def test_rows_cover_the_stream_once(documents: list, length: int) -> None:
    stream = [i for document in documents for i in document]
    rows = list(pack_rows(documents, length))
    assert len(rows) == max(0, len(stream) - 1) // length
    for number, row in enumerate(rows):
        assert row.dtype == np.int32
        assert row.tolist() == stream[number * length : (number + 1) * length + 1]


def test_held_out_takes_the_lowest_share_of_hashes() -> None:
    hashes = np.arange(0, 2**64, 2**60, dtype=np.uint64)  # 16 hashes in equal steps
    assert held_out(hashes, 0.25).tolist() == [True] * 4 + [False] * 12


def test_each_side_gets_a_document() -> None:
    high = np.array([2**63 + 5, 2**63 + 1, 2**63 + 1], np.uint64)
    assert held_out(high, 0.1).tolist() == [False, True, True]
    low = np.array([3, 9, 3], np.uint64)
    assert held_out(low, 0.1).tolist() == [True, False, True]
