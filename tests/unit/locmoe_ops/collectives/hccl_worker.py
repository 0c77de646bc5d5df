"""One of four msrun workers: compiles all HCCL Cells, and a tensor-parallel sparse layer, forward and backward and
writes the graphs.
Argument: folder.
"""

import json
import sys
from pathlib import Path

import numpy as np

RANKS_PER_NODE = 2
JOBS = [
    (2, 2),
    (2, 1),
    (2, 2),
]  # expert- and tensor-parallel degrees of jobs in one process: the second's groups have other members
JOB_GROUPS = ["tp", "ep", "edp"]


def export_ragged(folder, rank, collectives):
    """A ragged dispatch with its gradient: rows whose number only the run knows, in the middle of a graph of fixed
    shapes.
    """
    import mindspore as ms
    from mindspore import nn

    from locmoe_ops.dispatch.geometry import DispatchOptions, DispatchSetup
    from locmoe_ops.dispatch.ragged import RaggedDispatcher
    from locmoe_ops.topology import ExpertPlacement

    tokens, ranks = 6, collectives.topology.world_size

    class Ragged(nn.Cell):
        def __init__(self):
            super().__init__()
            placement, options = ExpertPlacement(2 * ranks, 1, ranks), DispatchOptions(ragged_limit=2.0)
            setup = DispatchSetup(collectives.topology, placement, tokens, 1, options=options)
            self.dispatcher = RaggedDispatcher(collectives, setup, "ragged")
            self.experts = nn.ReLU()
            self.differentiate = ms.value_and_grad(self.total, (0, 1))

        def total(self, x, weight, expert):
            return self.dispatcher.forward(x, expert, weight, weight, self.experts)[0].sum()

        def construct(self, x, weight, expert):
            return self.differentiate(x, weight, expert)

    given = np.ones((tokens, 3), np.float32), np.ones((tokens, 1), np.float32), np.zeros((tokens, 1), np.int32)
    ms.export(Ragged(), *map(ms.Tensor, given), file_name=str(folder / f"ragged_{rank}"), file_format="MINDIR")


def members_of_jobs(rank, size):
    """For jobs that follow each other in this process: name -> members, as MindSpore has them, of the groups that their
    Cells need.
    """
    from mindspore.communication import GlobalComm, get_group_size, get_world_rank_from_group_rank

    from locmoe_ops.collectives.hccl import HcclCollectives
    from locmoe_ops.topology import Topology

    jobs = []
    for number, (expert, tensor) in enumerate(JOBS):
        collectives = HcclCollectives(rank, Topology(size, RANKS_PER_NODE, expert, tensor), f"job{number}")
        for kind in JOB_GROUPS:
            collectives.all_reduce(kind, "sum")
        jobs.append(
            {
                name: [get_world_rank_from_group_rank(name, member) for member in range(get_group_size(name))]
                for name in collectives.groups
                if name != GlobalComm.WORLD_COMM_GROUP
            }
        )
    return jobs


def sums_of_functions(rank, size):
    """Of the functions that hccl calls in PyNative mode MindSpore has two on CPU: a sum and a broadcast of rank
    numbers, and their gradients for the objective sum(dy * y), where dy is the rank, too.
    """
    import mindspore as ms

    from locmoe_ops.collectives.create import create_collectives
    from locmoe_ops.topology import Topology

    before = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    collectives = create_collectives("hccl", Topology(size, RANKS_PER_NODE, size), rank, eager=True)
    found, own = {}, ms.Tensor(np.full((2, 3), float(rank), np.float32))
    for group in ("world", "node"):
        for cell in (collectives.all_reduce(group, "sum"), collectives.broadcast(group, "share", root=1)):
            value, gradient = ms.value_and_grad(lambda x, cell=cell: (cell(x) * rank).sum(), 0)(own)
            numbers = [float(value), *gradient.asnumpy().reshape(-1).tolist()]
            found.setdefault(group, []).append(numbers)
    ms.set_context(mode=before)
    return found


def main():
    import mindspore as ms
    from mindspore import nn
    from mindspore.communication import get_group_size, get_rank, init

    from locmoe_ops.collectives.create import create_collectives
    from locmoe_ops.dispatch.flat import FlatDispatcher
    from locmoe_ops.dispatch.geometry import DispatchOptions, DispatchSetup, FixedCapacities
    from locmoe_ops.dispatch.group_wise import AllGatherSlots, ReduceScatterSlots
    from locmoe_ops.experts import ExpertBank
    from locmoe_ops.tensor_parallel import SplitRegion, TensorGroup
    from locmoe_ops.topology import ExpertPlacement, Topology

    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    init()
    rank, size = get_rank(), get_group_size()
    collectives = create_collectives("hccl", Topology(size, RANKS_PER_NODE, size), rank)

    class All(nn.Cell):
        def __init__(self):
            super().__init__()
            self.uneven = collectives.all_to_all_v("world", "uneven", 5, size)
            self.exchange = collectives.all_to_all("world", "exchange")
            self.gather = collectives.all_gather("node", "gather")
            self.scatter = collectives.reduce_scatter("rail", "scatter")
            self.total = collectives.all_reduce("dp", "total")
            self.share = collectives.broadcast("node", "share", root=1)

        def construct(self, x, counts):  # (5, 3) -> (4, 3) -> (4, 3) -> (8, 3) -> (4, 3)
            y = self.exchange(self.uneven(x, counts))
            z = self.gather(y * y)
            w = self.scatter(z * z)
            return self.total(self.share(w * w)).sum()

    class Backward(nn.Cell):
        def __init__(self, network):
            super().__init__()
            self.differentiate = ms.value_and_grad(network, 0)

        def construct(self, x, counts):
            return self.differentiate(x, counts)

    class SplitLayer(nn.Cell):
        """A split region, then experts whose inner features are split, behind a group-wise exchange."""

        def __init__(self):
            super().__init__()
            collectives = create_collectives("hccl", Topology(size, RANKS_PER_NODE, 2, 2), rank)
            tensor, placement = TensorGroup(collectives), ExpertPlacement(2, 1, 2)
            self.copy_in, self.reduce_out = tensor.copy_in("region"), tensor.reduce_out("region")
            options = DispatchOptions(group_wise=True)
            setup = DispatchSetup(collectives.topology, placement, 4, 1, FixedCapacities(2), options)
            self.dispatcher = FlatDispatcher(collectives, setup, "moe")
            self.experts = ExpertBank(
                placement.local_experts(rank // 2),
                3,
                8,
                region=SplitRegion(tensor, AllGatherSlots(collectives, "in"), ReduceScatterSlots(collectives, "out")),
            )

        def construct(self, x, expert, gate):
            x = self.reduce_out(self.copy_in(x) * 0.5)
            y, _ = self.dispatcher.forward(x, expert, gate, gate, self.experts)
            return (y * y).sum()

    class SplitBackward(nn.Cell):
        def __init__(self, network):
            super().__init__(auto_prefix=False)  # an export finds parameters by the names that the network gives them
            self.network = network
            self.differentiate = ms.value_and_grad(network, 0)

        def construct(self, x, expert, gate):
            return self.differentiate(x, expert, gate)

    folder = Path(sys.argv[1])
    ms.export(
        SplitBackward(SplitLayer()),
        ms.Tensor(np.ones((4, 3), np.float32)),
        ms.Tensor(np.zeros((4, 1), np.int32)),
        ms.Tensor(np.ones((4, 1), np.float32)),
        file_name=str(folder / f"split_{rank}"),
        file_format="MINDIR",
    )
    counts = ms.Tensor(np.ones((size, size), np.int32))
    ms.export(
        Backward(All()),
        ms.Tensor(np.ones((5, 3), np.float32)),
        counts,
        file_name=str(folder / f"graph_{rank}"),
        file_format="MINDIR",
    )
    export_ragged(folder, rank, collectives)
    collectives.barrier()  # a sum over the world is what MindSpore can also run on CPU
    note = {
        "meetings": len(collectives._meeting.compile_cache),
        "counted": collectives.bytes_sent().counted,
        "jobs": members_of_jobs(rank, size),
        "functions": sums_of_functions(rank, size),
    }
    (folder / f"graph_{rank}.json").write_text(json.dumps(note))


if __name__ == "__main__":
    main()
