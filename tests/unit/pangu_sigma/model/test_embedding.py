from dataclasses import replace

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor, dtype

from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.embedding import Embedding, TiedHead


@pytest.fixture
def shape(networks):
    return model_dims(networks.small_config(), 3, networks.VOCABULARY, networks.DOMAINS)


@pytest.fixture(params=[False, True], ids=["shared", "per_domain"])
def per_domain(request):
    return request.param


def read(embedding, batch):
    return embedding(*(Tensor(batch[key]) for key in ("ids", "positions", "domain", "seeds")))


def test_vectors_match_a_loop(shape, networks, pynative_mode, per_domain):
    embedding, batch = Embedding(shape, per_domain), networks.make_batch()
    networks.randomise(embedding, 0)
    word, position = embedding.word.asnumpy(), embedding.position.asnumpy()
    assert word.shape == ((2 if per_domain else 1) * 29, 16)
    found = read(embedding, batch)
    assert found.dtype == dtype.float32
    for row in range(3):
        for i in range(12):
            slot = 29 * batch["domain"][row] if per_domain else 0
            expected = word[slot + batch["ids"][row, i]] + position[batch["positions"][row, i]]
            np.testing.assert_array_equal(found.asnumpy()[12 * row + i], expected)


def test_gradient_counts_how_often_a_word_occurs(shape, networks, pynative_mode, per_domain):
    embedding, batch = Embedding(shape, per_domain), networks.make_batch()
    gradient = ms.grad(lambda: read(embedding, batch).sum(), None, embedding.trainable_params())()
    slots = 29 * batch["domain"] if per_domain else np.zeros(3, np.int32)
    words = np.bincount((batch["ids"] + slots[:, None]).reshape(-1), minlength=len(embedding.word))
    positions = np.bincount(batch["positions"].reshape(-1), minlength=12)
    np.testing.assert_array_equal(gradient[0].asnumpy(), np.tile(words[:, None], (1, 16)))
    np.testing.assert_array_equal(gradient[1].asnumpy(), np.tile(positions[:, None], (1, 16)))


@pytest.mark.parametrize(
    "compute_dtype, tolerance",
    [
        (dtype.float32, 1e-5),  # dot products of 16 numbers of order 1
        (dtype.float16, 1e-2),
    ],
)
def test_head_scores_with_the_table_of_the_domain(shape, networks, pynative_mode, per_domain, compute_dtype, tolerance):
    head, batch = TiedHead(replace(shape, compute_dtype=compute_dtype), per_domain), networks.make_batch()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((36, 16)).astype(np.float32)
    word = rng.standard_normal(((2 if per_domain else 1) * 29, 16)).astype(np.float32)
    scores = head(Tensor(x), Tensor(word), Tensor(batch["domain"]))
    assert scores.dtype == compute_dtype and scores.shape == (36, 29)
    for t in range(36):
        slot = 29 * batch["domain"][t // 12] if per_domain else 0
        np.testing.assert_allclose(scores.asnumpy()[t], word[slot : slot + 29] @ x[t], atol=tolerance, rtol=tolerance)
