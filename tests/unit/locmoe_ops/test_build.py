"""The layer builder: its layer equals the NumPy reference with the same weights, and refuses what does not fit."""

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from locmoe_ops.errors import InputError
from locmoe_ops.moe import build_moe
from locmoe_ops.reference.layer import moe_layer
from locmoe_ops.reference.spec import LayerParameters, LayerSpec, RankTokens
from locmoe_ops.topology import ExpertPlacement, Topology

TOKENS, WIDTH, FFN, EXPERTS, WORDS = 24, 16, 32, 4, 50


@pytest.mark.parametrize("router", ["locmoe", "switch", "hash"])
def test_layer_equals_reference(router):
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    layer = build_moe(TOKENS, WIDTH, FFN, EXPERTS, router, vocab_size=WORDS)
    generator = np.random.default_rng(3)
    x = generator.standard_normal((TOKENS, WIDTH)).astype(np.float32)
    ids = generator.integers(0, WORDS, TOKENS).astype(np.int32)
    zeros = np.zeros(TOKENS, np.int32)
    fields = {
        name: Tensor(value) for name, value in (("ids", ids), ("domain", zeros), ("home", zeros), ("seed", zeros))
    }
    y, report = layer(Tensor(x), fields)

    bank, chosen = layer.experts, layer.routing.router
    parameters = LayerParameters(
        bank.w_in.asnumpy(),
        bank.b_in.asnumpy()[:, 0],
        bank.w_out.asnumpy(),
        bank.b_out.asnumpy()[:, 0],
        gate=chosen.gate.weight.asnumpy() if router == "switch" else None,
        table=chosen.table.asnumpy() if router == "hash" else None,
    )
    spec = LayerSpec(Topology(1, 1), ExpertPlacement(EXPERTS, 1, 1), capacity=8, router=router)  # ceil(1.25 * 24 / 4)
    expected = moe_layer(spec, parameters, [RankTokens(x, ids, zeros, zeros)])
    # float32 against float64: outputs are sums of at most 32 products of order 0.01
    np.testing.assert_allclose(y.asnumpy(), expected.outputs[0], atol=1e-6)
    assert float(report["aux_loss"].asnumpy()) == pytest.approx(expected.aux_loss, rel=1e-5, abs=1e-9)
    assert np.array_equal(report["assigned"].asnumpy(), expected.stats.tokens_per_expert)


@pytest.mark.parametrize(
    "change, fragment",
    [
        ({"router": "best"}, "expected one of etr, faster_moe"),
        ({"router": "hash"}, "vocab_size"),
        ({"num_experts": 5}, "do not divide hidden size 16"),
        ({"top_k": 9}, "expected 1 to 4"),
    ],
)
def test_what_does_not_fit_is_refused(change, fragment):
    sizes = {"tokens": 8, "hidden_size": 16, "ffn_hidden_size": 32, "num_experts": 4, **change}
    with pytest.raises(InputError, match=fragment):
        build_moe(**sizes)
