from dataclasses import replace

import numpy as np
import pytest

from mindspore import Tensor, dtype

from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.feed_forward import FeedForward


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "fast_gelu", "relu"])
def test_output_matches_numpy(networks, numpy_model, pynative_mode, name):
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


def test_float16(networks, pynative_mode):
    shape = model_dims(networks.small_config(), 3, networks.VOCABULARY, networks.DOMAINS)
    network = FeedForward(replace(shape, compute_dtype=dtype.float16))
    y, _ = network(Tensor(np.ones((36, 16), np.float32)), {})
    assert y.dtype == dtype.float16
    assert network.w_out.residual and not network.w_in.residual
    assert {parameter.dtype for parameter in network.trainable_params()} == {dtype.float32}
