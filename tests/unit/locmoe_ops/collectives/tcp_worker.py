"""One rank that runs every Cell forward and backward in both modes, and once more with the functions of hccl, for which
`helpers.mesh_functions` stands in, and saves what it got, by case name.

Arguments: rank, world size, port, output file. Inputs come from `example`, which the test shares.
"""

import os
import sys
import time

import numpy as np

RANKS_PER_NODE = 2

# name: (operation, group, shape, dtype, root)
CASES = {
    "all_to_all": ("all_to_all", "world", (4, 3, 2), "float32", 0),
    "all_to_all_pair": ("all_to_all", "node", (2, 5), "float32", 0),
    "all_to_all_half": ("all_to_all", "world", (4, 6), "float16", 0),
    "all_gather": ("all_gather", "rail", (3, 2), "float32", 0),
    "reduce_scatter": ("reduce_scatter", "world", (8, 2), "float32", 0),
    "all_reduce": ("all_reduce", "world", (5, 4), "float32", 0),
    "all_reduce_large": ("all_reduce", "node", (100, 70), "float32", 0),
    "all_reduce_scalar": ("all_reduce", "world", (), "float32", 0),
    "broadcast": ("broadcast", "world", (3,), "float32", 2),
    "gathered": ("all_to_all", "world", (4, 3, 2), "float32", 0),
    "gathered_pair": ("all_to_all", "node", (2, 5), "float16", 0),
    "one_rank": ("all_to_all", "tp", (1, 4), "float32", 0),
}


def example(case, rank, what, shape, dtype):
    """The values of `what` (`x` or `dy`) that `rank` uses in `case`: integers, so that every sum is exact."""
    seed = [list(CASES).index(case), rank, ("x", "dy").index(what)]
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(dtype)


def output_shape(operation, size, shape):
    if operation == "all_gather":
        return (shape[0] * size,) + shape[1:]
    if operation == "reduce_scatter":
        return (shape[0] // size,) + shape[1:]
    return shape


def run_case(collectives, case, mode):
    """Output and input gradient of one Cell, for the objective sum(dy * y)."""
    import mindspore as ms

    operation, group, shape, dtype, root = CASES[case]
    extra = {"root": root} if operation == "broadcast" else {}
    collectives.gathered = case.startswith("gathered")
    cell = getattr(collectives, operation)(group, f"{mode}/{case}", **extra)
    size = len(collectives.topology.group_of(group, collectives.rank))
    x = ms.Tensor(example(case, collectives.rank, "x", shape, dtype))
    dy = ms.Tensor(example(case, collectives.rank, "dy", output_shape(operation, size, shape), dtype))

    def objective(x, dy):
        y = cell(x)
        return (y * dy).sum(), y

    differentiate = ms.value_and_grad(objective, 0, None, has_aux=True)
    if mode == "graph":
        differentiate = ms.jit(differentiate)
    (_, y), dx = differentiate(x, dy)
    collectives.gathered = False
    return {f"{mode}/{case}/y": y.asnumpy(), f"{mode}/{case}/dx": dx.asnumpy()}


# Rows from each rank (first axis) to each; a send buffer has 9 rows, a receive buffer 11.
UNEVEN = np.array([[2, 0, 3, 1], [0, 0, 1, 0], [4, 1, 2, 2], [1, 5, 0, 0]], np.int32)
UNEVEN_SHAPES = {"x": (9, 3), "dy": (11, 3)}


def run_uneven(collectives, mode):
    """Output and input gradient of an all-to-all of unequal parts, for the objective sum(dy * y)."""
    import mindspore as ms

    cell, rank = collectives.all_to_all_v("world", f"{mode}/uneven", 9, 11), collectives.rank
    x, dy = (ms.Tensor(example("all_to_all", rank, what, UNEVEN_SHAPES[what], "float32")) for what in ("x", "dy"))

    def objective(x, dy, counts):
        y = cell(x, counts)
        return (y * dy).sum(), y

    differentiate = ms.value_and_grad(objective, 0, None, has_aux=True)
    if mode == "graph":
        differentiate = ms.jit(differentiate)
    (_, y), dx = differentiate(x, dy, ms.Tensor(UNEVEN))
    return {f"{mode}/uneven/y": y.asnumpy(), f"{mode}/uneven/dx": dx.asnumpy()}


def run_chain(collectives, mode):
    """Gradient of four chained collectives, one of them used twice: messages of one tag must not mix."""
    import mindspore as ms
    from mindspore import nn

    class Chain(nn.Cell):
        def __init__(self):
            super().__init__()
            self.there = collectives.all_to_all("world", f"{mode}/chain/there")
            self.back = collectives.all_to_all("world", f"{mode}/chain/back")
            self.total = collectives.all_reduce("world", f"{mode}/chain/total")

        def construct(self, x):
            y = self.there(x)
            z = self.back(self.there(y * y) + x)
            return self.total((z * x).sum())

    x = ms.Tensor(example("all_to_all", collectives.rank, "x", (4, 3, 2), "float32"))
    differentiate = ms.value_and_grad(Chain(), 0)
    if mode == "graph":
        differentiate = ms.jit(differentiate)
    value, dx = differentiate(x)
    return {f"{mode}/chain/y": value.asnumpy(), f"{mode}/chain/dx": dx.asnumpy()}


def run_async(collectives, mode):
    """Output and input gradient of two all-to-alls under way at a time, for the objective sum(dy * y)."""
    import mindspore as ms

    pairs = [collectives.all_to_all_async("world", f"{mode}/async {i}") for i in range(2)]
    x, dy = (ms.Tensor(example("all_to_all", collectives.rank, what, (4, 3, 2), "float32")) for what in ("x", "dy"))

    def objective(x, dy):
        handles = [pair.start(x * (i + 1)) for i, pair in enumerate(pairs)]
        first, second = (pair.wait(handle) for pair, handle in zip(pairs, handles))
        y = first * second
        return (y * dy).sum(), y

    (_, y), dx = ms.value_and_grad(objective, 0, None, has_aux=True)(x, dy)
    return {f"{mode}/async/y": y.asnumpy(), f"{mode}/async/dx": dx.asnumpy()}


def run_functions(mesh, topology):
    """All cases by the functions that hccl has in PyNative mode."""
    from helpers.mesh_functions import MeshFunctions
    from locmoe_ops.collectives.hccl import HcclCollectives
    from locmoe_ops.collectives.rank_numbers import check_rank_numbers

    MeshFunctions(mesh).install()
    collectives, results = HcclCollectives(mesh.rank, topology, eager=True), {}
    for case in CASES:
        results.update(run_case(collectives, case, "functions"))
    for run in (run_chain, run_uneven, run_async):
        results.update(run(collectives, "functions"))
    check_rank_numbers(collectives)
    collectives.barrier()
    return results


def run_independent(collectives):
    """Many collectives that do not depend on each other, in a graph that ranks start at different times.

    Returns the sums of all runs; ranks that ran them in different orders would wait for each other for ever.
    """
    import mindspore as ms
    from mindspore import nn

    class Many(nn.Cell):
        def __init__(self):
            super().__init__()
            self.exchanges = nn.CellList([collectives.all_reduce("world", f"many/{i}") for i in range(8)])

        def construct(self, x):
            total = self.exchanges[0](x).sum()
            for i, cell in enumerate(self.exchanges):
                total = total + cell(x * (i + 1)).sum() * cell(x + i).sum()
            return total

    differentiate = ms.jit(ms.value_and_grad(Many(), 0))
    sums = []
    for step in range(6):
        time.sleep(0.01 * ((collectives.rank + step) % 3))
        value, dx = differentiate(ms.Tensor([float(step)]))
        sums.append((float(value), float(dx.sum())))
    return np.array(sums)


def main():
    rank, world_size, port = map(int, sys.argv[1:4])
    import mindspore as ms

    from locmoe_ops.collectives.create import create_collectives
    from locmoe_ops.collectives.rank_numbers import check_rank_numbers
    from locmoe_ops.collectives.tcp.mesh import join_mesh
    from locmoe_ops.topology import Topology

    ms.set_device("CPU")
    topology = Topology(world_size, RANKS_PER_NODE, world_size)
    mesh = join_mesh(rank, world_size, ("127.0.0.1", port), os.environ["MESH_SECRET"].encode(), collective_timeout=40.0)
    collectives = create_collectives("tcp", topology, rank, mesh)
    results = {}
    for mode in ("pynative", "graph"):
        ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
        for case in CASES:
            results.update(run_case(collectives, case, mode))
        results.update(run_chain(collectives, mode))
        results.update(run_uneven(collectives, mode))
    collectives.barrier()
    results["bytes"] = np.array(collectives.bytes_sent()[:2])
    check_rank_numbers(collectives)  # raises where a group does not carry what is sent
    results["many"] = run_independent(collectives)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    results.update(run_async(collectives, "pynative"))
    results.update(run_functions(mesh, topology))
    ms.set_context(mode=ms.GRAPH_MODE)
    results["times"] = np.array(collectives.times())
    results["lost"] = np.array(fail_inside_a_graph(collectives))
    np.savez(sys.argv[4], **results)
    collectives.close()


def fail_inside_a_graph(collectives):
    """Rank 0 aborts; the others are inside a compiled collective then. Returns the message that the mesh holds."""
    import mindspore as ms

    cell = collectives.all_reduce("world", "doomed")
    if collectives.rank == 0:
        collectives.mesh.abort("test")
    else:
        try:
            cell(ms.Tensor(np.ones(3, np.float32))).asnumpy()
        except Exception:
            pass  # whatever MindSpore makes of it, the mesh keeps the original
    return str(collectives.mesh.failure)


if __name__ == "__main__":
    main()
