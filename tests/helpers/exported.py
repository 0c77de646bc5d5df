"""Graphs for Ascend of one rank of a job, compiled in this process, without the other ranks."""

from contextlib import contextmanager
from dataclasses import replace

import pytest

import mindspore as ms
from mindspore.ops.operations import comm_ops

from locmoe_ops.collectives import hccl
from locmoe_ops.dispatch.registry import dispatcher_spec
from pangu_sigma.audit.graph import read_rank
from pangu_sigma.audit.worker import export_rank
from pangu_sigma.train.engine import TrainEngine


@contextmanager
def without_peers(rank, world_size):
    """In here this process compiles as a rank of a job whose other ranks are not there: a process group is a name and
    its members, which MindSpore's communication is never asked to connect. (Ranks that are all there: test_audit.py.)
    """
    mode, members = ms.get_context("mode"), {hccl.GlobalComm.WORLD_COMM_GROUP: list(range(world_size))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hccl, "create_group", members.__setitem__)
        patch.setattr(comm_ops, "_get_group", lambda group: group)
        patch.setattr(comm_ops, "get_group_size", lambda group: len(members[group]))
        patch.setattr(comm_ops, "get_rank", lambda group: members[group].index(rank))
        ms.set_context(mode=ms.GRAPH_MODE)
        yield patch
    ms.set_context(mode=mode)


def export_first(job, folder, names=None):
    """Writes graphs of a job's first rank, as an audit does.

    Args:
        names: of the graphs that are wanted; None: all.
    """
    every, ranks = TrainEngine.graphs, job.topology.world_size

    def wanted(engine, batch):
        return (graph for graph in every(engine, batch) if names is None or graph.name in names)

    with without_peers(0, ranks) as patch:
        patch.setattr(TrainEngine, "graphs", wanted)
        export_rank(job.config, 0, ranks, job.words, job.domains, folder, folder.name)


def first_rank(job, folder):
    """The graphs that the first rank of a job wrote."""
    dynamic = not dispatcher_spec(job.config.moe.dispatch.type).has_slots
    return read_rank(folder, 0, dynamic, job.reads_status)


def both_like_the_first(job, folder):
    """The graphs of a job of two ranks, the second one's as the first rank wrote them."""
    first = first_rank(job, folder)
    return [first, replace(first, rank=1)]
