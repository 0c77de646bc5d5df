"""The routes that evaluation shows of a network, against the same network in NumPy."""

import numpy as np
import pytest

from mindspore import Tensor

from pangu_sigma.model.inputs import BATCH_FIELDS
from pangu_sigma.model.objective import Objective
from pangu_sigma.model.pangu_sigma import sparse_layers
from pangu_sigma.train.evaluation import EvaluationStep

CASES = {
    "learned gate": {
        "model": {"sparse_layers": 2},
        "moe": {"router": {"type": "switch", "top_k": 2, "switch": {"jitter": 0.3}}},
    },
    "fixed gate": {"model": {"dense_layers": 0, "sparse_query_layer": True}, "moe": {"router": {"type": "locmoe"}}},
    "no gate": {"model": {"dense_layers": 0}, "moe": {"router": {"type": "hash"}}},
}


@pytest.fixture(params=CASES)
def case(request, networks, numpy_model):
    return networks.SmallNetwork(numpy_model, networks.small_config(**CASES[request.param]), seed=3)


def router_inputs(model, batch):
    """<float64>[T, d] of every sparse layer, noted while the NumPy network runs."""
    seen, feed_forward = [], model._feed_forward

    def note(x, batch, name, sparse, layers):
        if sparse:
            seen.append(model._norm(x, f"{name}.ffn_norm"))
        return feed_forward(x, batch, name, sparse, layers)

    model._feed_forward = note
    return seen, model.forward(batch).layers


def gates_by_hand(case, layer):
    """Gate rows of each group, or None."""
    router = case.config.moe.router.type
    if router == "hash":
        return None
    if router == "locmoe":  # n = 2 experts of a group average the halves of 16 features
        return np.tile(np.repeat(np.eye(2), 8, axis=1) * 2 / 16, (2, 1, 1))
    weight = case.network.blocks[1 + layer].feed_forward.routing.router.gate.weight.asnumpy()
    return np.stack([weight[:2], weight[2:]])


def test_evaluation_shows_what_enters_the_routers(case):
    batch = case.batch()
    found = EvaluationStep(case.objective).routed([Tensor(batch[name]) for name in BATCH_FIELDS])
    seen, layers = router_inputs(case.double(training=False), batch)
    assert len(found) == len(seen) == len(sparse_layers(case.network)) > 0
    for number, (mine, x, layer) in enumerate(zip(found, seen, layers)):
        np.testing.assert_allclose(
            mine.x, x, rtol=1e-4, atol=1e-4
        )  # float32 through up to three blocks, values of order 1
        np.testing.assert_array_equal(mine.expert, layer.expert[0])
        gates = gates_by_hand(case, number)
        if gates is None:
            assert mine.gates is None
            continue
        np.testing.assert_allclose(mine.gates, gates, rtol=1e-6)
        group = np.repeat(batch["domain"], 12)  # domain i uses group i
        for token, cosine in enumerate(mine.token_gate()):
            for place, gate in enumerate(gates[group[token]]):
                expected = x[token] @ gate / np.sqrt((x[token] @ x[token]) * (gate @ gate))
                assert cosine[place] == pytest.approx(expected, abs=1e-4)
        np.testing.assert_array_equal(mine.choice + 2 * group[:, None], mine.expert)


def test_what_is_not_finite_has_no_direction(networks, numpy_model):
    case = networks.SmallNetwork(numpy_model, networks.small_config(**CASES["fixed gate"]))
    gamma = case.network.blocks[0].ffn_norm.gamma
    gamma.set_data(Tensor(np.full(gamma.shape, np.nan, np.float32)))
    first, *_ = EvaluationStep(case.objective).routed([Tensor(case.batch()[name]) for name in BATCH_FIELDS])
    assert not first.x.any() and not first.token_gate().any()


def test_a_gate_on_word_vectors_sees_those(networks):
    config = networks.small_config(
        {"dense_layers": 0}, {"router": {"type": "locmoe", "locmoe": {"gate_input": "word"}}}
    )
    network = networks.build_network(config)
    networks.randomise(network, 5)
    batch = networks.make_batch()
    (found,) = EvaluationStep(Objective(network, 1)).routed([Tensor(batch[name]) for name in BATCH_FIELDS])
    words = network.embedding.word.asnumpy().astype(np.float64)[batch["ids"].reshape(-1)]
    seen = (words - words.mean(1, keepdims=True)) / words.std(1, keepdims=True)
    np.testing.assert_allclose(found.x, seen, rtol=1e-4, atol=1e-5)  # float32
    halves = np.maximum(seen.reshape(-1, 2, 8).mean(2), 0.0)  # the gate's values, after Eq. 2
    np.testing.assert_array_equal(found.choice[:, 0], halves.argmax(1))


@pytest.mark.usefixtures("pynative_mode")
def test_layers_with_routers_of_their_own_are_shown_apart(networks):
    """A router on codes of two coordinates, and one by a map, which is given hidden states of 16."""
    moe = {"router": {"type": "hash"}, "routers": [{"layers": [0], "type": "locmoe", "locmoe": {"gate_input": "code"}}]}
    network = networks.build_network(networks.small_config({"dense_layers": 0, "sparse_layers": 2}, moe))
    batch = networks.make_batch()
    by_code, by_map = EvaluationStep(Objective(network, 1)).routed([Tensor(batch[name]) for name in BATCH_FIELDS])
    ids, group = batch["ids"].reshape(-1), np.repeat(batch["domain"], 12)
    assert (by_code.x.shape, by_map.x.shape) == ((len(ids), 2), (len(ids), 16))
    for found, block in zip((by_code, by_map), network.blocks):
        table = block.feed_forward.routing.router.expert_by_id()
        np.testing.assert_array_equal(found.choice[:, 0], table[group, ids])
