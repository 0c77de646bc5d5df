import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data.batch import make_batch

END = 0


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4))
def test_resets_against_a_walk_over_the_ids(rows: list) -> None:
    batch = make_batch(np.array(rows, np.int32), np.zeros(len(rows)), np.zeros(len(rows)), END, reset=True)
    for b, row in enumerate(rows):
        position = document = 0
        for t, token in enumerate(row[:-1]):
            assert batch.ids[b, t] == token and batch.targets[b, t] == row[t + 1]
            assert batch.positions[b, t] == position and batch.documents[b, t] == document
            assert batch.loss_mask[b, t] == (token != END)
            position, document = (0, document + 1) if token == END else (position + 1, document)


def test_without_resets() -> None:
    batch = make_batch(np.array([[5, END, 7, 8]], np.int32), np.array([2]), np.array([3]), END, reset=False)
    assert batch.positions.tolist() == [[0, 1, 2]]
    assert batch.documents.tolist() == [[0, 0, 0]]
    assert batch.loss_mask.tolist() == [[1, 1, 1]]
    assert (batch.domain.tolist(), batch.home.tolist()) == ([2], [3])


@pytest.mark.parametrize("reset", [True, False])
def test_types_and_layout(reset: bool) -> None:
    batch = make_batch(np.ones((2, 5), np.int32), np.zeros(2, np.int64), np.zeros(2, np.int64), END, reset)
    assert [array.dtype for array in batch] == [np.int32] * 4 + [np.float32] + [np.int32] * 2
    assert all(array.flags.c_contiguous for array in batch)
