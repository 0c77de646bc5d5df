import math

import numpy as np

from pangu_sigma.data.batch import make_batch
from pangu_sigma.data.vocabulary import unigram_perplexity


def test_by_hand_on_masked_targets() -> None:
    counts = np.array([5, 2, 0], np.int64)  # smoothed: 6/10, 3/10, 1/10
    rows = np.array([[1, 2, 0, 1]], np.int32)  # targets 2, 0, 1; the last follows end-of-text (0) and does not count
    batch = make_batch(rows, np.zeros(1), np.zeros(1), end_of_text=0, reset=True)
    # float64 arithmetic on three terms
    assert math.isclose(unigram_perplexity(counts, [batch]), 1 / math.sqrt(0.1 * 0.6), rel_tol=1e-12)


def test_nothing_seen_is_the_vocabulary_size() -> None:
    batch = make_batch(np.ones((2, 5), np.int32), np.zeros(2), np.zeros(2), end_of_text=0, reset=True)
    assert math.isclose(unigram_perplexity(np.zeros(7, np.int64), [batch, batch]), 7.0, rel_tol=1e-12)


def test_no_target_is_not_a_number() -> None:
    batch = make_batch(np.zeros((1, 3), np.int32), np.zeros(1), np.zeros(1), end_of_text=0, reset=True)
    assert math.isnan(unigram_perplexity(np.ones(3, np.int64), [batch]))
