"""Layers that are recomputed: the same bits, and in exported graphs the forward products once more, as the planner has
them.
"""

import json

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor
from mindspore.train import mind_ir_pb2

from pangu_sigma.audit.graph import _output, read_rank
from pangu_sigma.config.derived import recomputed_parts
from pangu_sigma.model.objective import Objective
from pangu_sigma.model.recompute import set_recompute
from pangu_sigma.planner.job import plan_job
from pangu_sigma.planner.predict import recomputed_flops
from pangu_sigma.runtime.mindir import export_graph

PARTS = ("none", "attention", "sparse", "all", 1)


def config_of(networks, part):
    return networks.small_config(
        {"attention_dropout": 0.1, "hidden_dropout": 0.1, "vocab_size": networks.VOCABULARY},
        {"router": {"type": "switch"}, "shared_experts": 2},
        train={"recompute": part, "global_batch_size": len(networks.DOCUMENTS), "steps": 200},
    )


@pytest.fixture(scope="module")
def differentiated(networks):
    """By part: the Cell that gives value, sums and gradients, whose weights are the same."""

    ms.set_context(mode=ms.GRAPH_MODE)

    def build(part):
        config = config_of(networks, part)
        network = networks.build_network(config)
        networks.randomise(network, 0)
        set_recompute(network, recomputed_parts(config))
        cell = networks.ObjectiveGradients(Objective(network, 36), network.trainable_params())
        cell.set_train()
        return cell

    return {part: build(part) for part in PARTS}


@pytest.fixture(scope="module")
def inputs(networks):
    return [Tensor(np.float32(1.0)), *networks.tensors(networks.make_batch())]


@pytest.fixture(scope="module")
def results(differentiated, inputs):
    """All arrays without recomputation, and with all of it."""

    def arrays(part):
        value, sums, gradients = differentiated[part](*inputs)
        return [value.asnumpy(), *(total.asnumpy() for total in sums.values()), *(g.asnumpy() for g in gradients)]

    return {part: arrays(part) for part in ("none", "all")}


def test_losses_and_gradients_are_the_same_to_the_bit(results):
    assert len(results["all"]) == len(results["none"]) > 40
    for found, expected in zip(results["all"], results["none"]):
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def exported(differentiated, inputs, tmp_path_factory):
    """A folder for each part, with the graph `micro_batch` of rank 0."""
    folders = {}
    for part, cell in differentiated.items():
        folders[part] = tmp_path_factory.mktemp(str(part))
        export_graph(cell, inputs, folders[part] / "micro_batch_0")
        (folders[part] / "rank_0.json").write_text(json.dumps({"graphs": [["micro_batch", 1]], "groups": {}}))
    return folders


@pytest.mark.parametrize("part", PARTS)
def test_products_stand_once_more_as_planned(networks, exported, part):
    """Each waits for the gradient of what is above it: without that it would be kept as before."""
    (graph,) = read_rank(exported[part], 0, dynamic=False).graphs
    planned = recomputed_flops(plan_job(config_of(networks, part), 1, 1))
    assert graph.again == pytest.approx(planned) and (planned > 0) == (part != "none")


def kept_shapes(folder, scope):
    """Of what the forward pass makes inside `scope` and operators behind a gradient read."""
    model = mind_ir_pb2.ModelProto()
    model.ParseFromString((folder / "micro_batch_0.mindir").read_bytes())
    made, late, kept = {}, set(), {}
    for node in model.graph.node:
        if "Gradients/" in node.domain or not late.isdisjoint(node.input):
            late.update(node.output)
            kept.update({name: made[name] for name in node.input if name in made and name not in late})
        elif scope in node.domain and node.op_type.rpartition("::")[2].partition(":")[0] not in ("Load", "MakeTuple"):
            made.update({name: _output(node)[0] for name in node.output})
    return [shape for shape in kept.values() if np.prod(shape) > 36]  # numbers a token, and fewer, apart


def test_a_dense_layer_keeps_no_scores_and_no_inner_features(exported):
    """But masks of dropout; where only some layers are recomputed, MindSpore was seen to keep maps of heads as well."""
    whole = kept_shapes(exported["none"], "blocks-CellList/0-Block")
    assert (36, 20) in whole and any(shape[-2:] == (12, 12) for shape in whole) and len(whole) > 8
    assert kept_shapes(exported["all"], "blocks-CellList/0-Block") == [(36, 16)] * 2
    lowest = kept_shapes(exported[1], "blocks-CellList/0-Block")
    assert (36, 20) not in lowest and not any(shape[-2:] == (12, 12) for shape in lowest)
    assert (36, 20) in kept_shapes(exported["attention"], "blocks-CellList/0-Block")
