"""Copies of parameters in half precision: the same steps to the bit as with casts in every micro-batch, which are no
longer there.
"""

from collections import Counter

import numpy as np
import pytest

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology
from pangu_sigma.bench.step import random_batch
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.runtime.mindir import export_graph
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.train import engine as engine_module
from pangu_sigma.train.engine import TrainEngine
from pangu_sigma.train.half_copies import HalfCopies

WORDS = Vocabulary(29, 2, np.ones(29, np.int64))
ROWS, LENGTH, MICRO_BATCHES = 2, 12, 3


def make(networks, copies, precision="fp16"):
    """A run of several micro-batches a step."""
    config = networks.small_config(
        {"dense_layers": 1, "domain_embeddings": True},
        {"router": {"type": "switch"}},
        train={"global_batch_size": ROWS * MICRO_BATCHES, "micro_batch_size": ROWS, "steps": 10},
        runtime={"precision": precision},
    )
    with pytest.MonkeyPatch.context() as patch:
        if not copies:
            patch.setattr(engine_module, "HalfCopies", lambda network, kind: None)
        return TrainEngine(config, Runtime(create_collectives("local", Topology(1, 1), 0)), WORDS)


@pytest.fixture(scope="module")
def engines(networks):
    return {copies: make(networks, copies) for copies in (False, True)}


def read_mindir(path):
    from mindspore.train import mind_ir_pb2

    model = mind_ir_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    return model


@pytest.fixture(scope="module")
def graphs(engines, tmp_path_factory):
    """The graphs of both steps by name, but for their updates."""
    found = {}
    for copies, engine in engines.items():
        folder = tmp_path_factory.mktemp("graphs")
        for graph in engine.graphs(random_batch(ROWS, LENGTH, WORDS)):
            if graph.name == "update":
                continue
            export_graph(graph.cell, graph.inputs, folder / graph.name)
            found[copies, graph.name] = read_mindir(folder / f"{graph.name}.mindir")
    return found


def kind_of(node):
    return node.op_type.removeprefix("REF::").partition(":")[0]


def casts_of_parameters(model):
    """Names of the parameters that a graph casts, straight away or through nodes that pass values on."""
    parameters = {one.name for one in model.graph.parameter}
    passed_on = {}
    for node in model.graph.node:
        if kind_of(node) in ("Load", "Depend", "Identity") and node.input[0] in parameters | set(passed_on):
            passed_on[node.output[0]] = passed_on.get(node.input[0], node.input[0])
    origin = {**{name: name for name in parameters}, **passed_on}
    return [origin[node.input[0]] for node in model.graph.node if kind_of(node) == "Cast" and node.input[0] in origin]


def test_steps_are_the_same_to_the_bit(engines):
    """Weights, moments, losses, norms; evaluation between them, which reads what the update has just changed."""
    batches = [random_batch(ROWS, LENGTH, WORDS)] * MICRO_BATCHES
    found = {}
    for copies, engine in engines.items():
        results = [engine.train_step(batches, step, 0.01) for step in (1, 2)]
        statistics = engine.evaluate(batches[:1])
        results.append(engine.train_step(batches, 3, 0.01))
        state = {entry.name: entry.get().copy() for entry in engine.state()}
        found[copies] = state, [one.grad_norm for one in results], statistics, [one.sums["task"] for one in results]
    assert found[True][1] == found[False][1] and len(set(found[True][1])) == 3
    assert found[True][3] == found[False][3]
    np.testing.assert_array_equal(found[True][2], found[False][2])
    assert set(found[True][0]) == set(found[False][0])
    for name, value in found[False][0].items():
        np.testing.assert_array_equal(found[True][0][name], value, err_msg=name)


def test_what_a_run_saves_has_no_copies(engines):
    assert not [entry.name for entry in engines[True].state() if "copy" in entry.name]


def test_a_micro_batch_casts_no_parameter(graphs):
    """With casts in the graph it is every weight and bias of maps and experts, and the word table."""
    assert casts_of_parameters(graphs[True, "micro_batch"]) == []
    cast = casts_of_parameters(graphs[False, "micro_batch"])
    assert len(cast) > 20 and any(name.endswith("embedding.word") for name in cast)


def test_copies_are_made_once_a_step_in_a_graph_of_their_own(graphs):
    once = graphs[True, "copies"]
    kinds = Counter(map(kind_of, once.graph.node))
    assert kinds["Cast"] == kinds["Assign"] == len(casts_of_parameters(graphs[False, "micro_batch"]))
    assert not kinds["MatMul"]
    assert (False, "copies") not in graphs


def products_added(model):
    """Products whose result is cast and added to a parameter, by which of their inputs are transposed."""
    makers = {name: node for node in model.graph.node for name in node.output}
    added = Counter()
    for node in model.graph.node:
        if kind_of(node) != "AssignAdd":
            continue
        value = makers.get(node.input[1])
        cast = value is not None and kind_of(value) == "Cast"
        product = makers.get(value.input[0]) if cast else None
        if product is not None and kind_of(product) == "MatMul":
            transposed = tuple(bool(makers[name].attribute[0].i) for name in product.input[2:4])
            added[transposed] += 1
    return added


def test_gradients_of_maps_are_added_as_mindspores_pass_wants_it(graphs):
    """MatMul of the transposed first input, Cast, AssignAdd: what matmul_assignadd_fusion makes one kernel of
    (MindSpore, matmul_assignadd_fusion.cc).
    """
    added = products_added(graphs[True, "micro_batch"])
    # Three attentions of four maps, two dense feed-forward networks of two; the word table is added up in two parts.
    assert added == {(True, False): 3 * 4 + 2 * 2}


@pytest.mark.parametrize("precision, micro_batches", [("fp32", 3), ("fp16", 1)])
def test_copies_are_where_they_save_something(networks, precision, micro_batches):
    config = networks.small_config(
        train={"global_batch_size": ROWS * micro_batches, "micro_batch_size": ROWS}, runtime={"precision": precision}
    )
    engine = TrainEngine(config, Runtime(create_collectives("local", Topology(1, 1), 0)), WORDS)
    assert [graph.name for graph in engine.graphs(random_batch(ROWS, LENGTH, WORDS))][0] != "copies"


def test_all_that_reads_a_copy_is_differentiated_by_it(networks):
    network = networks.build_network(networks.small_config())
    parameters = network.trainable_params()
    copies = HalfCopies(network, engine_module.dtype.float16)
    read = copies.differentiated(parameters)
    assert read.gradients == len(parameters) and len(read.twice) == 1
    word = parameters[read.twice[0]]
    assert word.name == "embedding.word" and read.parameters[read.twice[0]] is word
    for parameter, other in zip(parameters, read.parameters):
        assert other is parameter or (other.shape == parameter.shape and other.dtype == engine_module.dtype.float16)


def test_fused_additions_need_no_cast(networks, tmp_path):
    """Compiled as on Ascend: small maps as the pass wants them; experts and biases by InplaceAddExt, which reads half
    precision; float32 gradients as before.
    """
    config = networks.small_config(
        {"dense_layers": 1},
        {"router": {"type": "switch"}},
        train={"global_batch_size": ROWS * MICRO_BATCHES, "micro_batch_size": ROWS, "steps": 10},
        runtime={"precision": "fp16", "device": "ascend", "fused": {"accumulate": True}},
    )
    engine = TrainEngine(config, Runtime(create_collectives("local", Topology(1, 1), 0)), WORDS)
    _, micro, _ = engine.graphs(random_batch(ROWS, LENGTH, WORDS))
    export_graph(micro.cell, micro.inputs, tmp_path / "micro")
    model = read_mindir(tmp_path / "micro.mindir")
    makers = {name: kind_of(node) for node in model.graph.node for name in node.output}
    added = Counter(
        (kind_of(node), makers.get(node.input[1]) == "Cast")
        for node in model.graph.node
        if kind_of(node) in ("AssignAdd", "InplaceAddExt")
    )
    maps, biases, experts = 3 * 4 + 2 * 2, 3 * 3 + 2 * 2, 4
    assert added["AssignAdd", True] >= maps
    assert products_added(model) == {(True, False): maps}  # those of Dense are MatMul, too
    assert added["InplaceAddExt", False] == biases + experts and added["InplaceAddExt", True] == 0
