"""Graphs of a job of which one rank was compiled."""

import json
from dataclasses import replace

import numpy as np
import pytest

import mindspore as ms
from mindspore.ops.operations import comm_ops

from locmoe_ops.collectives import hccl
from locmoe_ops.dispatch.registry import dispatcher_spec
from pangu_sigma.audit.graph import read_rank
from pangu_sigma.bench.step import random_batch
from pangu_sigma.config.chips import known_chip
from pangu_sigma.config.derived import micro_batch_sequences
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.runtime.mindir import export_graph
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.train.engine import TrainEngine


def first_rank(job, folder):
    """The graphs that the first rank of a job wrote."""
    dynamic = not dispatcher_spec(job.config.moe.dispatch.type).has_slots
    return read_rank(folder, 0, dynamic, job.reads_status)


def both_like_the_first(job, folder):
    """The graphs of a job of two ranks, the second one's as the first rank wrote them."""
    first = first_rank(job, folder)
    return [first, replace(first, rank=1)]


def export_first(job, folder, names=None):
    """Writes graphs of a job's first rank as `pangu_sigma.audit.worker` does it, in this process and without the other
    ranks: a process group is its name and its members, to which MindSpore's communication is never asked to connect.

    Args:
        names: of the graphs that are wanted; None: all.
    """
    topology, config, mode = job.topology, job.config, ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    members = {hccl.GlobalComm.WORLD_COMM_GROUP: list(range(topology.world_size))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hccl, "create_group", members.__setitem__)
        patch.setattr(comm_ops, "_get_group", lambda group: group)
        patch.setattr(comm_ops, "get_group_size", lambda group: len(members[group]))
        patch.setattr(comm_ops, "get_rank", lambda group: members[group].index(0))
        collectives = hccl.HcclCollectives(0, topology, folder.name, config.parallel.all_to_all == "gathered")
        words = Vocabulary(job.words, job.domains, np.ones((config.moe.num_groups, job.words), np.int64))
        engine = TrainEngine(config, Runtime(collectives, chip=known_chip(config.runtime.chip)), words)
        batch = random_batch(micro_batch_sequences(config, topology.data), config.model.sequence_length, words)
        graphs = []
        for graph in engine.graphs(batch):
            if names is None or graph.name in names:
                export_graph(graph.cell, graph.inputs, folder / f"{graph.name}_0")
                graphs.append([graph.name, graph.times])
    ms.set_context(mode=mode)
    note = {"graphs": graphs, "groups": collectives.groups}
    (folder / "rank_0.json").write_text(json.dumps(note))
