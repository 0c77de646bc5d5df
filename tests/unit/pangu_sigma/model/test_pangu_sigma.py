import numpy as np
import pytest

from mindspore import Tensor, dtype

from locmoe_ops.random import SeededDropout
from locmoe_ops.routers.switch import SwitchRouter
from pangu_sigma.model.attention import AttentionCore
from pangu_sigma.model.layers import LayerNorm
from pangu_sigma.model.pangu_sigma import token_seeds


def test_logits_match_numpy(any_case, numpy_model):
    """In evaluation, where the experts have other capacities than in the training that `test_objective` looks at."""
    batch = any_case.batch()
    expected = any_case.double(training=False).forward(batch).logits
    # float32 rounds at 6e-8; a few layers deep a few tens of that remain.
    assert numpy_model.relative_error(any_case.logits(batch), expected) < 1e-5


def test_tokens_see_neither_the_future_nor_other_documents(case):
    network = case("dense")
    batch = network.batch()
    before = network.logits(batch).reshape(3, 12, -1)
    row, changed = 2, 6  # lies in the row's third document, positions 4 to 11
    ids = batch["ids"].copy()
    ids[row, changed] = (ids[row, changed] + 1) % 29
    ids[row, 0] = (ids[row, 0] + 1) % 29  # the whole of the first document
    after = network.logits({**batch, "ids": ids}).reshape(3, 12, -1)
    differs = (before != after).any(-1)
    expected = np.zeros((3, 12), bool)
    expected[row, changed:] = True
    expected[row, 0] = True
    np.testing.assert_array_equal(differs, expected)


RATES = {"embedding_dropout": 0.1, "attention_dropout": 0.2, "hidden_dropout": 0.3}


@pytest.fixture(scope="module")
def with_dropout(networks, numpy_model):
    config = networks.small_config({**RATES, "dense_layers": 1, "sparse_layers": 0})
    return networks.SmallNetwork(numpy_model, config, seed=3)


def test_dropout_sits_where_it_should(with_dropout, numpy_model):
    """The masks come from the cells themselves; that each acts in its place, with its rate and scale, is checked."""
    batch = with_dropout.batch()
    logits = with_dropout.logits(batch, training=True)
    factors = {}
    for name, cell in with_dropout.network.cells_and_names():
        if isinstance(cell, SeededDropout):
            kinds = {"embedding.dropout": 0.1, "core.dropout": 0.2}
            rate = next((rate for ending, rate in kinds.items() if name.endswith(ending)), 0.3)
            factors[name] = (cell.uniform(Tensor(batch["seeds"])).asnumpy() >= rate) / (1.0 - rate)
    assert len(factors) == 1 + 2 * 3
    expected = with_dropout.double(True, factors).forward(batch).logits
    assert numpy_model.relative_error(logits, expected) < 1e-5
    other = with_dropout.logits({**batch, "seeds": batch["seeds"] + 1}, training=True)
    assert numpy_model.relative_error(other, expected) > 0.1


def test_no_two_dropouts_draw_the_same_numbers(with_dropout):
    streams = {
        name: (cell.high.asnumpy()[0, :64].tobytes(), cell.low.asnumpy()[0, :64].tobytes())
        for name, cell in with_dropout.network.cells_and_names()
        if name.endswith("uniform")
    }
    assert len(set(streams.values())) == len(streams) == 7


def test_float32_is_kept_for_norms_softmax_and_routers(networks, pynative_mode):
    """In float16, every normalisation and every softmax still sees and gives float32."""
    config = networks.small_config(
        {"sparse_query_layer": True}, {"router": {"type": "switch"}}, runtime={"precision": "fp16"}
    )
    network = networks.build_network(config)
    networks.randomise(network, 0)
    seen = []

    def recording(operation):
        def run(*inputs):
            seen.append(inputs[0].dtype)
            return operation(*inputs)

        return run

    for _, cell in network.cells_and_names():
        for kind, attribute in ((LayerNorm, "norm"), (AttentionCore, "softmax"), (SwitchRouter, "softmax")):
            if isinstance(cell, kind):
                object.__setattr__(cell, attribute, recording(getattr(cell, attribute)))
    logits, _ = network(
        *(Tensor(networks.make_batch()[key]) for key in ("ids", "positions", "documents", "domain", "home", "seeds"))
    )
    assert logits.dtype == dtype.float16
    assert len(seen) == 3 + 2 + 7  # attention of three blocks, two routers; two norms a block and the final one
    assert set(seen) == {dtype.float32}


def test_token_seeds_differ_within_and_between_rows(pynative_mode):
    seeds = token_seeds(Tensor(np.array([1, 2, -(2**31)], np.int32)), 12).asnumpy()
    steps = (np.arange(12, dtype=np.uint64) * 0x27D4EB2F) & 0xFFFFFFFF
    expected = ((np.array([[1], [2], [2**31]], np.uint64) + steps) & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    np.testing.assert_array_equal(seeds, expected.reshape(-1))
    assert len(set(seeds.tolist())) == 36
