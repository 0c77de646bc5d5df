import numpy as np

from pangu_sigma.evaluation.windows import ScoredRow, ScoreRequest, cut, lost, pack, to_batch


def pieces(request, length):
    return [(window.ids.tolist(), window.targets.tolist(), window.first) for window in cut(0, request, length)]


def test_what_fits_is_one_piece():
    assert pieces(ScoreRequest([1, 2], [3, 4], 0), 3) == [([1, 2, 3], [2, 3, 4], 1)]
    assert pieces(ScoreRequest([1], [3], 0), 4) == [([1], [3], 0)]
    assert pieces(ScoreRequest([1, 2], [], 0), 4) == [([1], [2], 1)]  # nothing scored


def test_a_long_context_keeps_its_first_id_and_its_end():
    request = ScoreRequest([9, 1, 2, 3, 4], [5, 6], 0)
    assert pieces(request, 4) == [([9, 3, 4, 5], [3, 4, 5, 6], 2)] and lost(request, 4) == 2
    assert pieces(request, 2) == [([9, 5], [5, 6], 0)] and lost(request, 2) == 4


def test_a_long_continuation_is_cut_and_each_id_scored_once():
    request = ScoreRequest([9], [1, 2, 3, 4, 5, 6, 7], 0)
    assert pieces(request, 3) == [([9, 1, 2], [1, 2, 3], 0), ([3, 4, 5], [4, 5, 6], 0), ([4, 5, 6], [5, 6, 7], 2)]
    scored = [target for _, targets, first in pieces(request, 3) for target in targets[first:]]
    assert scored == list(request.continuation)


def test_rows_hold_one_domain_and_no_more_than_their_length():
    rng = np.random.default_rng(0)
    requests = [
        ScoreRequest([1], rng.integers(0, 9, rng.integers(1, 9)).tolist(), int(rng.integers(2))) for _ in range(40)
    ]
    windows = [window for number, request in enumerate(requests) for window in cut(number, request, 10)]
    rows = pack(windows, [request.domain for request in requests], 10)
    assert sorted(w.request for row in rows for w in row.windows) == list(range(40))
    assert all(requests[w.request].domain == row.domain for row in rows for w in row.windows)
    assert all(sum(len(w.ids) for w in row.windows) <= 10 for row in rows)
    tokens = sum(len(w.ids) for w in windows)
    assert len(rows) < 40 and tokens > 0.7 * 10 * len(rows)  # rows are shared


def test_a_batch_says_what_is_a_document_and_what_is_scored():
    first, second = cut(0, ScoreRequest([1, 2], [3, 4], 1), 6)[0], cut(1, ScoreRequest([5], [6], 1), 6)[0]
    batch = to_batch([ScoredRow(1, [first, second])], 2, 6)
    assert batch.ids.tolist() == [[1, 2, 3, 5, 0, 0], [0] * 6] and batch.targets.tolist() == [
        [2, 3, 4, 6, 0, 0],
        [0] * 6,
    ]
    assert batch.positions.tolist()[0] == [0, 1, 2, 0, 0, 0] and batch.documents.tolist()[0] == [0, 0, 0, 1, 2, 2]
    assert batch.loss_mask.tolist() == [[0, 1, 1, 1, 0, 0], [0] * 6] and batch.domain.tolist() == [1, 0]
