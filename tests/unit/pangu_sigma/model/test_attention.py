from dataclasses import replace

import numpy as np
import pytest

from mindspore import Tensor, dtype

from pangu_sigma.model.attention import AttentionCore, QueryAttention, SelfAttention, attention_mask
from pangu_sigma.model.dims import model_dims


@pytest.fixture
def shape(networks):
    return model_dims(networks.small_config(), 3, networks.VOCABULARY, networks.DOMAINS)


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
    attention = QueryAttention(shape, salt=1)
    networks.randomise(attention, 0)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((36, 16)).astype(np.float32)
    query = np.tile(rng.standard_normal((1, 16)).astype(np.float32), (36, 1))
    everything = Tensor(np.zeros((3, 1, 12, 12), np.float32))
    found = attention(Tensor(query), Tensor(x), everything, Tensor(np.zeros(3, np.int32))).asnumpy().reshape(3, 12, 16)
    # The order of summation may differ between rows of a matrix product.
    np.testing.assert_allclose(found, np.broadcast_to(found[:, :1], found.shape), rtol=1e-5, atol=1e-6)
    assert np.abs(found[0, 0] - found[1, 0]).max() > 0.01  # other text, other answer


@pytest.mark.parametrize("cell", [SelfAttention, QueryAttention])
def test_float16_goes_in_and_out(shape, networks, pynative_mode, cell):
    attention = cell(replace(shape, compute_dtype=dtype.float16), salt=1)
    x = Tensor(np.ones((36, 16), np.float32))
    inputs = (x,) if cell is SelfAttention else (x, x)
    found = attention(
        *inputs, attention_mask(Tensor(networks.make_batch()["documents"])), Tensor(np.zeros(3, np.int32))
    )
    assert found.dtype == dtype.float16 and found.shape == (36, 16)
    assert attention.project.residual and attention.project.weight.dtype == dtype.float32
