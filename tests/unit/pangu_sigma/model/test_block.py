from dataclasses import replace

import numpy as np
import pytest

from mindspore import Tensor, dtype

from pangu_sigma.model.attention import Attention, attention_mask
from pangu_sigma.model.block import Block, FeedForward, QueryBlock
from pangu_sigma.model.dims import model_dims


@pytest.fixture
def inputs(networks, pynative_mode):
    batch = networks.make_batch()
    x = np.random.default_rng(0).standard_normal((36, 16)).astype(np.float32)
    return {
        "x": Tensor(x),
        "context": {
            "mask": attention_mask(Tensor(batch["documents"])),
            "positions": Tensor(batch["positions"]),
            "seeds": Tensor(batch["seeds"]),
            "tokens": {"ids": Tensor(batch["ids"].reshape(-1))},
        },
    }


def make_block(networks, kind, precision):
    config = networks.small_config(runtime={"precision": precision})
    shape = model_dims(config, 3, networks.VOCABULARY, networks.DOMAINS)
    return kind(shape, 0, FeedForward(shape))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_enters_the_stream_stays_in_it(networks, inputs, precision):
    """With output maps of zero both sub-layers add nothing; the stream is float32 whatever they compute in."""
    block = make_block(networks, Block, precision)
    y, output = block(**inputs)
    assert y.dtype == dtype.float32 and output == {"report": {}, "cache": {}}
    np.testing.assert_array_equal(y.asnumpy(), inputs["x"].asnumpy())


def test_output_biases_add_up_on_the_stream(networks, inputs):
    """Each sub-layer adds its output to x itself, not to its norm."""
    block = make_block(networks, QueryBlock, "fp32")
    block.attention.project.bias.set_data(Tensor(np.full(16, 2.0, np.float32)))
    block.feed_forward.w_out.bias.set_data(Tensor(np.full(16, 0.5, np.float32)))
    y, _ = block(**inputs)
    np.testing.assert_allclose(y.asnumpy(), inputs["x"].asnumpy() + 2.5, rtol=1e-6, atol=1e-6)


def test_query_layer_asks_with_the_vector_of_the_position_id(networks, inputs, monkeypatch):
    """Positions restart with documents: what a token asks depends on its id, not on its place in the row."""
    block = make_block(networks, QueryBlock, "fp32")
    networks.randomise(block, 1)
    seen = []
    monkeypatch.setattr(
        Attention, "construct", lambda self, x, context, query, cache: (seen.append(query.asnumpy()) or x, {})
    )
    block(**inputs)
    positions = inputs["context"]["positions"].asnumpy()
    np.testing.assert_array_equal(seen[0], block.top_query.asnumpy()[positions.reshape(-1)])


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "fast_gelu", "relu"])
def test_dense_output_matches_numpy(networks, numpy_model, pynative_mode, name):
    shape = model_dims(networks.small_config({"activation": name}), 3, networks.VOCABULARY, networks.DOMAINS)
    network = FeedForward(shape)
    networks.randomise(network, 0)
    x = np.random.default_rng(1).standard_normal((36, 16)).astype(np.float32)
    weight = networks.parameter_arrays(network)
    inner = numpy_model.ACTIVATIONS[name](x.astype(np.float64) @ weight["w_in.weight"].T + weight["w_in.bias"])
    expected = inner @ weight["w_out.weight"].T + weight["w_out.bias"]
    y, report = network(Tensor(x), {})
    assert report == {} and weight["w_in.weight"].shape == (20, 16)
    assert numpy_model.relative_error(y.asnumpy(), expected) < 1e-5  # two short float32 products


def test_dense_float16(networks, pynative_mode):
    shape = model_dims(networks.small_config(), 3, networks.VOCABULARY, networks.DOMAINS)
    network = FeedForward(replace(shape, compute_dtype=dtype.float16))
    y, _ = network(Tensor(np.ones((36, 16), np.float32)), {})
    assert y.dtype == dtype.float16
    assert network.w_out.residual and not network.w_in.residual
    assert {parameter.dtype for parameter in network.trainable_params()} == {dtype.float32}
