from dataclasses import replace

import numpy as np
import pytest

from mindspore import Tensor, dtype

from pangu_sigma.model.attention import Attention, AttentionCore, attention_mask, cached_mask, write_rows
from pangu_sigma.model.dims import model_dims


@pytest.fixture
def shape(networks):
    return model_dims(networks.small_config(), 3, networks.VOCABULARY, networks.DOMAINS)


def _context(mask):
    """What attention reads of a batch of three rows of twelve positions."""
    row = Tensor(np.zeros(3, np.int32))
    return {"mask": mask, "positions": Tensor(np.zeros((3, 12), np.int32)), "seeds": row, "tokens": {}}


def test_mask_matches_a_loop(networks, numpy_model, pynative_mode):
    documents = networks.make_batch()["documents"]
    mask = attention_mask(Tensor(documents))
    assert mask.dtype == dtype.float32 and mask.shape == (3, 1, 12, 12)
    for row in range(3):
        expected = np.where(numpy_model.visible(documents[row]), 0.0, -10000.0)
        np.testing.assert_array_equal(mask.asnumpy()[row, 0], expected)


def test_attention_without_preference_is_the_mean_of_what_is_visible(shape, networks, numpy_model, pynative_mode):
    documents = networks.make_batch()["documents"]
    rng = np.random.default_rng(0)
    key, value = (rng.standard_normal((3, 2, 12, 8)).astype(np.float32) for _ in range(2))
    found = AttentionCore(shape, salt=1)(
        Tensor(np.zeros_like(key)),
        Tensor(key),
        Tensor(value),
        attention_mask(Tensor(documents)),
        Tensor(np.zeros(3, np.int32)),
    )
    found = found.asnumpy().reshape(3, 12, 2, 8)
    for row in range(3):
        for i, seen in enumerate(numpy_model.visible(documents[row])):
            # Twelve float32 numbers of order 1 are averaged.
            np.testing.assert_allclose(found[row, i], value[row][:, seen].mean(1), atol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1.0, 1e3])
def test_hidden_positions_weigh_exactly_nothing(shape, networks, pynative_mode, size):
    """Whatever stands there, and however it scores: exp(-10000) is 0 in float32."""
    rng = np.random.default_rng(1)
    query, key, value = (rng.standard_normal((3, 2, 12, 8)).astype(np.float32) for _ in range(3))
    mask = attention_mask(Tensor(networks.make_batch()["documents"]))
    core, seeds = AttentionCore(shape, salt=1), Tensor(np.zeros(3, np.int32))
    before = core(Tensor(query), Tensor(key), Tensor(value), mask, seeds).asnumpy().reshape(3, 12, 16)
    key[:, :, 7:], value[:, :, 7:] = size * key[:, :, 7:], -size
    after = core(Tensor(query), Tensor(key), Tensor(value), mask, seeds).asnumpy().reshape(3, 12, 16)
    np.testing.assert_array_equal(after[:, :7], before[:, :7])
    assert not np.array_equal(after[:, 7:], before[:, 7:])


def test_query_attention_asks_for_positions_and_not_for_words(shape, networks, pynative_mode):
    """Two equal queries over the same visible text give the same answer, whatever their own words are."""
    attention = Attention(shape, salt=1, learned_query=True)
    networks.randomise(attention, 0)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((36, 16)).astype(np.float32)
    query = np.tile(rng.standard_normal((1, 16)).astype(np.float32), (36, 1))
    everything = _context(Tensor(np.zeros((3, 1, 12, 12), np.float32)))
    found = attention(Tensor(x), everything, Tensor(query))[0].asnumpy().reshape(3, 12, 16)
    # The order of summation may differ between rows of a matrix product.
    np.testing.assert_allclose(found, np.broadcast_to(found[:, :1], found.shape), rtol=1e-5, atol=1e-6)
    assert np.abs(found[0, 0] - found[1, 0]).max() > 0.01  # other text, other answer


@pytest.mark.parametrize("learned_query", [False, True])
def test_float16_goes_in_and_out(shape, networks, pynative_mode, learned_query):
    attention = Attention(replace(shape, compute_dtype=dtype.float16), 1, learned_query)
    x = Tensor(np.ones((36, 16), np.float32))
    context = _context(attention_mask(Tensor(networks.make_batch()["documents"])))
    found, kept = attention(x, context, x if learned_query else None)
    assert kept == {}  # without a cache
    assert found.dtype == dtype.float16 and found.shape == (36, 16)
    assert attention.project.residual and attention.project.weight.dtype == dtype.float32


def test_mask_of_a_cache_matches_a_loop(pynative_mode):
    """A token sees its document's places up to its own, whatever the others hold."""
    places, positions, length = np.array([[0, 4], [3, 6]], np.int32), np.array([[0, 2], [3, 0]], np.int32), 8
    found = cached_mask(Tensor(places), Tensor(positions), length).asnumpy()
    assert found.shape == (2, 1, 2, length)
    for row in range(2):
        for token in range(2):
            last, first = places[row, token], places[row, token] - positions[row, token]
            expected = [0.0 if first <= place <= last else -10000.0 for place in range(length)]
            np.testing.assert_array_equal(found[row, 0, token], expected)


def test_a_cache_takes_new_rows_in_their_places(pynative_mode):
    rng = np.random.default_rng(3)
    cache, new = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, 3, 1, 4))
    places = np.array([[4], [1]], np.int32)
    found = write_rows(*(Tensor(array.astype(np.float32)) for array in (cache, new)), Tensor(places)).asnumpy()
    for row, place in enumerate(places[:, 0]):
        cache[row, :, place] = new[row, :, 0]
    np.testing.assert_array_equal(found, cache.astype(np.float32))
