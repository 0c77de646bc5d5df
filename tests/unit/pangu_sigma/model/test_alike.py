"""Layers that share a graph in the compiler: which, the same bits, and recomputation as planned."""

import json

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from pangu_sigma.audit.graph import read_rank
from pangu_sigma.config.derived import recomputed_parts
from pangu_sigma.model.alike import share_alike_blocks
from pangu_sigma.model.objective import Objective
from pangu_sigma.model.recompute import set_recompute
from pangu_sigma.planner.job import plan_job
from pangu_sigma.planner.predict import recomputed_flops
from pangu_sigma.runtime.mindir import export_graph


def config_of(networks, recompute="none", **model):
    return networks.small_config(
        {"dense_layers": 3, "sparse_layers": 1, "vocab_size": networks.VOCABULARY, **model},
        {"router": {"type": "switch"}},
        train={"recompute": recompute, "global_batch_size": len(networks.DOCUMENTS), "steps": 200},
    )


def build(networks, config):
    network = networks.build_network(config)
    networks.randomise(network, 0)
    set_recompute(network, recomputed_parts(config))
    return network


def _other_constant(network):
    network.all_blocks()[1].attention_norm.epsilon_of_this_one = 1e-3


SHARED = {
    "all dense layers": ({}, None, 3),
    "recomputed ones by themselves": ({"recompute": 1}, None, 2),
    "none with random numbers of its own": ({"hidden_dropout": 0.1}, None, 0),
    "none that differs by a constant": ({}, _other_constant, 2),
}


@pytest.mark.parametrize("case", SHARED)
def test_which_layers_share_a_graph(networks, case):
    options, change, expected = SHARED[case]
    network = build(networks, config_of(networks, **options))
    if change is not None:
        change(network)
    assert share_alike_blocks(network) == expected
    marks = [getattr(block, "cell_init_args", None) for block in network.all_blocks()]
    marked = [mark for mark in marks if mark is not None]
    assert len(marked) == expected and len(set(marked)) == min(1, expected)


def test_the_same_bits_and_the_products_that_are_planned(networks, tmp_path):
    """By itself, sharing graphs, and sharing them while all layers are recomputed."""
    ms.set_context(mode=ms.GRAPH_MODE)
    inputs = [Tensor(np.float32(1.0)), *networks.tensors(networks.make_batch())]
    results = []
    for share, recompute in ((False, "none"), (True, "none"), (True, "all")):
        config = config_of(networks, recompute)
        network = build(networks, config)
        assert not share or share_alike_blocks(network) == 3
        cell = networks.ObjectiveGradients(Objective(network, 36), network.trainable_params())
        cell.set_train()
        value, sums, gradients = cell(*inputs)
        results.append([array.asnumpy() for array in (value, *sums.values(), *gradients)])
    assert len(results[0]) == len(results[1]) == len(results[2]) > 40
    for expected, *others in zip(*results):
        for found in others:
            np.testing.assert_array_equal(found, expected)
    export_graph(cell, inputs, tmp_path / "micro_batch_0")
    (tmp_path / "rank_0.json").write_text(json.dumps({"graphs": [["micro_batch", 1]], "groups": {}}))
    (graph,) = read_rank(tmp_path, 0, dynamic=False).graphs
    assert graph.again == pytest.approx(recomputed_flops(plan_job(config, 1, 1))) != 0
