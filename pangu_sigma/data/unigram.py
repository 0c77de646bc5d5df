"""The yardstick that any trained model must beat: ids drawn independently by their training frequency."""

import math
from typing import Iterable

import numpy as np

from pangu_sigma.data.batch import Batch


def unigram_perplexity(token_counts: np.ndarray, batches: Iterable[Batch]) -> float:
    """Perplexity of add-one-smoothed training frequencies on the batches' targets, weighted by loss_mask.

    `token_counts`: (vocab_size,) int64. Returns nan where no target counts.
    """
    losses = math.log(int(token_counts.sum()) + len(token_counts)) - np.log(token_counts + 1.0)  # nats of each id
    total = weight = 0.0
    for batch in batches:
        total += float((losses[batch.targets] * batch.loss_mask).sum())
        weight += float(batch.loss_mask.sum(dtype=np.float64))
    return math.exp(total / weight) if weight else math.nan
