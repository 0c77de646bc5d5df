"""Any layout to any layout, rank by rank in one process: what the ranks of one job write, those of any other read as
their own.

Initial values do not depend on the layout (every parameter draws from a stream of its own name), so each network of the
reading job knows by itself what it should find.
"""

from functools import cache

import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import ExpertPlacement, Topology
from pangu_sigma.checkpoint.folders import begin, publish
from pangu_sigma.checkpoint.format import CheckpointHeader, CheckpointManifest, DataState, write_manifest
from pangu_sigma.checkpoint.parts import collect_parts, write_part
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.state import (
    RankLocation,
    local_tensors,
    read_values,
    scalars,
    set_values,
    weights,
    writing_ranks,
)
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.train.engine import TrainEngine

WORDS = Vocabulary(32, 2, np.ones(32, np.int64))
# Topology and placement of the experts.
LAYOUTS = {
    "one process": (Topology(1, 1), "interleaved"),
    "ep 4": (Topology(4, 2, 4), "interleaved"),
    "ep 4 on nodes": (Topology(4, 2, 4), "node_grouped"),
    "ep 2 x tp 2": (Topology(4, 2, 2, 2), "node_grouped"),
    "ep 2, 2 replicas, tp 2": (Topology(8, 4, 2, 2), "interleaved"),
    "tp 4": (Topology(4, 4, 1, 4), "interleaved"),
    "dp 4": (Topology(4, 4), "interleaved"),
}


@pytest.fixture(scope="module")
def build(networks):
    """One rank of a job, whose other ranks are not there; moments made of its own initial weights, so that they follow
    their ranks.
    """

    @cache
    def run(layout, rank):
        topology, placement = LAYOUTS[layout]
        collectives = (
            networks.TwinCollectives(rank, topology)
            if topology.world_size > 1
            else create_collectives("local", topology, 0)
        )
        config = networks.small_config(
            {"domain_embeddings": True, "num_heads": 4},
            {
                "router": {"type": "switch", "balance_rate": 0.01},
                "expert_placement": placement,
                "logical_topology": {"world_size": 4, "ranks_per_node": 2, "expert": 4},
            },
            parallel={"expert": topology.expert, "tensor": topology.tensor, "ranks_per_node": topology.ranks_per_node},
            train={"global_batch_size": 24},
        )
        parts = TrainEngine(config, Runtime(collectives), WORDS)
        for parameter, first, second in zip(parts.parameters, parts.adam.first, parts.adam.second):
            first.set_data(parameter * 2.0)
            second.set_data(parameter * parameter)
        parts.adam.updates.set_data(Tensor(np.float32(9)))
        experts = ExpertPlacement(4, 2, topology.expert, placement).local_experts(topology.ep_index(rank))
        return parts, RankLocation(topology, rank, experts)

    return run


def write(build, layout, root):
    """The checkpoint that such a job writes, its ranks one after another."""
    part, topology = begin(root, 1), LAYOUTS[layout][0]
    for rank in range(topology.world_size):
        parts, location = build(layout, rank)
        found = local_tensors(parts.state(), location)
        assert bool(found) == (rank in writing_ranks(topology))
        if found:
            write_part(part, rank, found)
    header = CheckpointHeader(1, "training", {}, DataState(None, 32, ("a", "b")), {}, {}, scalars(parts.state()))
    tensors, shards = collect_parts(part, writing_ranks(topology), 0.0, lambda: None)
    write_manifest(CheckpointManifest(header, tensors, shards), part)
    publish(part, root / "step_1")
    return root / "step_1"


@pytest.fixture(scope="module")
def saved(build, tmp_path_factory):
    """By layout; all are written before any network is spoilt to be read into."""
    return {layout: write(build, layout, tmp_path_factory.mktemp("layout")) for layout in LAYOUTS}


@pytest.mark.parametrize("reading", LAYOUTS)
@pytest.mark.parametrize("writing", LAYOUTS)
def test_every_rank_finds_its_own(build, saved, writing, reading):
    with CheckpointReader.open(saved[writing]) as reader:
        for rank in range(LAYOUTS[reading][0].world_size):
            parts, location = build(reading, rank)
            state = parts.state()
            expected = {entry.name: entry.get().copy() for entry in state}
            for entry in state:
                entry.set(np.full(entry.shape, 77, entry.get().dtype))
            set_values(read_values(reader, state, location.local_experts))
            for entry in state:
                np.testing.assert_array_equal(entry.get(), expected[entry.name], err_msg=f"rank {rank}: {entry.name}")


def test_nothing_depends_on_who_wrote_it(saved):
    """Names, shapes and values of all checkpoints are the same; none is written twice."""
    with CheckpointReader.open(saved["one process"]) as alone:
        expected = {name: alone.read(name) for name in alone.names()}
        assert {f"blocks.1.feed_forward.experts.w_in@{expert}" for expert in range(4)} <= set(expected)
        for layout in LAYOUTS:
            with CheckpointReader.open(saved[layout]) as reader:
                assert set(reader.names()) == set(expected) and reader.header.scalars == alone.header.scalars
                for name, value in expected.items():
                    np.testing.assert_array_equal(reader.read(name), value, err_msg=f"{layout}: {name}")


def test_weights_are_what_evaluation_needs(build):
    parts, _ = build("one process", 0)
    names = {entry.name for entry in weights(parts.state())}
    assert names == {parameter.name for parameter in parts.network.get_parameters()}
