"""Cached decoding against the network that training evaluates, which reads whole rows and knows no cache."""

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from pangu_sigma.data.batch import make_batch
from pangu_sigma.inference.cells import Decode, Prefill, cache_bytes, empty_caches
from pangu_sigma.inference.decoding import Continuation, DecodedBatch
from pangu_sigma.inference.graphs import GraphPair

END, LENGTH, ROWS = 3, 12, 4
DOCUMENT = Continuation(END, resets=True)
# Three rows for graphs of four. Documents end within a prompt, at its end, and in what is decoded.
TEXT = (
    (5, 7, END, 9, 11, 20, 2, END, 6, 8, 25, 1),
    (17, 4, 28, 0, END, 13, 13, 2, 9, 21, 5),
    (END, 22, 10, END, END, 1, 14),
)
PROMPTS, IN_DOMAIN = (6, 1, 4), (1, 0, 1)


def _whole_rows(model, row):
    """<float32>[ids, V]: logits of the network that training evaluates, from one row without a cache; not compiled, to
    save time.
    """
    ids = np.full((1, LENGTH + 1), 19, np.int32)  # behind the text, something else
    ids[0, : len(TEXT[row])] = TEXT[row]
    home = np.array([model.homes[IN_DOMAIN[row]]])
    batch = make_batch(ids, np.array([IN_DOMAIN[row]]), home, END, reset=True)
    fields = (batch.ids, batch.positions, batch.documents, batch.domain, batch.home, batch.home)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    logits = model.network(*map(Tensor, fields))[0].asnumpy()
    ms.set_context(mode=ms.GRAPH_MODE)
    return logits[: len(TEXT[row])]


@pytest.fixture(scope="module")
def pair(every_router):
    shape = (ROWS, LENGTH)
    parts = (every_router.network, every_router.context, *shape)
    return GraphPair(*shape, Prefill(*parts), Decode(*parts))


def _stepwise(pair, model, rows):
    """Logits of each row from its prompt's last token on, rows of different length side by side."""
    domains = [IN_DOMAIN[row] for row in rows]
    batch = DecodedBatch(
        pair,
        [TEXT[row][: PROMPTS[row]] for row in rows],
        domains,
        [model.homes[domain] for domain in domains],
        DOCUMENT,
    )
    found = [[batch.logits[place]] for place in range(len(rows))]
    for step in range(LENGTH):
        tokens = [TEXT[row][PROMPTS[row] + step] if PROMPTS[row] + step < len(TEXT[row]) else None for row in rows]
        if not any(token is not None for token in tokens):
            return [np.stack(logits) for logits in found], batch
        batch.step(tokens)
        for place, token in enumerate(tokens):
            if token is not None:
                found[place].append(batch.logits[place])


def test_cached_logits_equal_those_of_whole_rows(every_router, pair):
    """Every router, at every position from the first on; prompts of different length; documents that end anywhere."""
    found, batch = _stepwise(pair, every_router, (0, 1, 2))
    for row, logits in enumerate(found):
        expected = _whole_rows(every_router, row)[PROMPTS[row] - 1 :]
        assert np.abs(expected).max() > 0.5
        # float32 rounds at 6e-8; a dozen layers deep some tens of that remain
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    held = [cache.asnumpy() for cache in batch.caches]
    assert sum(cache.nbytes for cache in held) == cache_bytes(every_router.network, ROWS, LENGTH)
    empty = empty_caches(every_router.network, ROWS, LENGTH)
    assert [cache.shape for cache in held] == [cache.shape for cache in empty]


def test_a_row_does_not_see_the_others(every_router, pair):
    together, _ = _stepwise(pair, every_router, (0, 1, 2))
    for order in ((2, 0), (1,)):
        for logits, row in zip(_stepwise(pair, every_router, order)[0], order):
            np.testing.assert_allclose(logits, together[row], rtol=0, atol=1e-6)  # sums may be in another order
