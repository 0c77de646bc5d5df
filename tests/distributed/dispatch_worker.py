"""One rank that moves tokens with every dispatcher of `CASES` and saves what it got, by case name.

Arguments: rank, port, launcher's process id, output file. Inputs come from `example`, which the test shares.
"""

import gc
import os
import sys
from typing import NamedTuple, Optional

import numpy as np

RANKS, TOKENS, HIDDEN, EXPERTS, AMPLE = 4, 11, 16, 8, 22


class Case(NamedTuple):
    """A dispatcher on `RANKS` ranks, and its capacities (tokens a rank may send to an expert of its node, and to
    another).

    `tensor` neighbouring ranks hold the same tokens and a term of each expert; `share`: they send a share each, else
    all. `parts`: those that exchange by themselves, neighbours.
    `gathered`: by all-gather, with the tokens of the case of the same name without it. `copies`: tokens a rank may send
    to another node, where each travels there once; None: as many as there are. `compiled`: in a graph; those that are
    not have another in which the same exchanges are compiled.
    """

    kind: str
    near: int
    far: int
    chunks: int = 1
    ranks_per_node: int = 2
    top_k: int = 1
    priority: str = "position"
    placement: str = "interleaved"
    groups: int = 1
    tensor: int = 1
    share: bool = False
    overflow: str = "drop"
    parts: int = 1
    gathered: bool = False
    copies: Optional[int] = None
    compiled: bool = True

    @property
    def places(self) -> int:
        """Ranks with tokens of their own."""
        return RANKS // self.tensor


CASES = {
    "flat, overflow, by weight": Case("flat", 2, 2, top_k=2, priority="weight"),
    "flat, 3 chunks": Case("flat", 3, 3, chunks=3),
    "hierarchical, overflow, overlapped": Case("hierarchical", 3, 1, chunks=2, top_k=2),
    "hierarchical, nothing near": Case("hierarchical", 2, 2, top_k=2, compiled=False),
    "hierarchical, nothing far, group-wise, re-picked": Case(
        "hierarchical", 4, 0, top_k=2, tensor=2, share=True, overflow="repick"
    ),
    "hierarchical, one rank a node": Case("hierarchical", 4, 2, ranks_per_node=1, chunks=2, compiled=False),
    "hierarchical, one node": Case("hierarchical", 5, 1, ranks_per_node=4, compiled=False),
    "flat, tensor parallel": Case("flat", 4, 4, top_k=2, tensor=2, compiled=False),
    "flat, group-wise": Case("flat", 4, 4, chunks=2, top_k=2, tensor=2, share=True),
    "hierarchical, group-wise, overflow, overlapped": Case(
        "hierarchical", 5, 2, chunks=2, top_k=2, tensor=2, share=True
    ),
    "flat, re-picked": Case("flat", 2, 2, top_k=2, overflow="repick", compiled=False),
    "hierarchical, re-picked, overlapped": Case(
        "hierarchical", 3, 1, chunks=2, top_k=2, priority="weight", groups=4, overflow="repick"
    ),
    "flat, in parts": Case(
        "flat", 5, 5, top_k=2, ranks_per_node=1, placement="node_grouped", groups=2, parts=2, compiled=False
    ),
    "flat, every rank by itself": Case("flat", 4, 4, top_k=2, parts=4, compiled=False),
    "hierarchical, in parts, overlapped": Case(
        "hierarchical", 4, 2, top_k=2, ranks_per_node=1, chunks=2, priority="weight", parts=2
    ),
    "hierarchical, in parts of a node": Case(
        "hierarchical", 4, 0, placement="node_grouped", groups=2, parts=2, compiled=False
    ),
    "hierarchical, group-wise, in parts": Case("hierarchical", 8, 4, tensor=2, share=True, parts=2, compiled=False),
    "flat, 3 chunks, gathered": Case("flat", 3, 3, chunks=3, gathered=True),
    "flat, top 4": Case("flat", 6, 6, top_k=4, compiled=False),
    "node_dedup, top 4": Case("node_dedup", 6, 6, top_k=4),
    "node_dedup, top 2, copies overflow, overlapped": Case("node_dedup", 3, 3, chunks=2, top_k=2, copies=4),
    "node_dedup, top 8, copies overflow, by weight": Case(
        "node_dedup", 7, 6, top_k=8, priority="weight", copies=7, compiled=False
    ),
    "node_dedup, one rank a node, re-picked": Case(
        "node_dedup", 2, 2, ranks_per_node=1, top_k=2, copies=3, overflow="repick"
    ),
    "node_dedup, tensor parallel, top 1": Case("node_dedup", 4, 3, tensor=2, ranks_per_node=2, copies=5),
    "node_dedup, one node": Case("node_dedup", 5, 1, ranks_per_node=4, top_k=2, compiled=False),
    "ragged, in parts": Case("ragged", AMPLE, AMPLE, top_k=2, ranks_per_node=1, parts=2),
    "ragged": Case("ragged", AMPLE, AMPLE, placement="node_grouped"),
}
TIGHT = "ragged, tight"  # a last case, whose rows do not fit


class Example(NamedTuple):
    """What one rank (or the ranks of a tensor-parallel group) is given: x, dy [T, d]; expert, weight [T, k];
    second, second_weight [T].
    """

    x: np.ndarray
    dy: np.ndarray
    expert: np.ndarray
    weight: np.ndarray
    second: np.ndarray
    second_weight: np.ndarray


def same_tokens(name: str) -> str:
    """The case whose tokens a case has."""
    return name.replace(", gathered", "").replace("node_dedup, top 4", "flat, top 4")


def example(name: str, place: int) -> Example:
    if name == TIGHT:  # everybody wants the first expert, of rank 0: four even loads
        zeros = np.zeros((TOKENS, HIDDEN), np.float32)
        return Example(
            zeros,
            zeros,
            np.zeros((TOKENS, 1), np.int32),
            np.ones((TOKENS, 1), np.float32),
            np.zeros(TOKENS, np.int32),
            np.zeros(TOKENS, np.float32),
        )
    rng = np.random.default_rng([list(CASES).index(same_tokens(name)), place])
    x, dy = rng.standard_normal((2, TOKENS, HIDDEN)).astype(np.float32)
    # One expert more than there are: no assignment. Low numbers are chosen often.
    expert = rng.permuted(np.tile(np.arange(EXPERTS + 1), (TOKENS, 1)), axis=1)[:, : CASES[name].top_k]
    expert = np.where(rng.uniform(size=expert.shape) < 0.3, np.arange(CASES[name].top_k), expert).astype(np.int32)
    for choice in range(1, CASES[name].top_k):  # no token goes to an expert twice
        expert[(expert[:, choice : choice + 1] == expert[:, :choice]).any(1), choice] = EXPERTS
    weight = rng.uniform(size=expert.shape).astype(np.float32)
    # Any expert that the token has not chosen, or none.
    left = [[e for e in range(EXPERTS) if e not in chosen] for chosen in expert]
    second = np.array(
        [EXPERTS if rng.uniform() < 0.2 or not experts else rng.choice(experts) for experts in left], np.int32
    )
    return Example(x, dy, expert, weight, second, rng.uniform(size=TOKENS).astype(np.float32))


def factors(tensor: int = 1) -> np.ndarray:
    """<float32>[tensor, EXPERTS, HIDDEN]: expert e multiplies its tokens by row e of the sum over ranks of a
    tensor-parallel group.
    """
    return np.random.default_rng(99).standard_normal((tensor, EXPERTS, HIDDEN)).astype(np.float32)


def placement_of(case: Case):
    from locmoe_ops.topology import ExpertPlacement

    return ExpertPlacement(EXPERTS, case.groups, case.places, case.placement)


def exchange_of(case: Case, place: int):
    from locmoe_ops.topology import ExpertSubgroup

    whole = placement_of(case)
    return whole if case.parts == 1 else ExpertSubgroup(whole, case.parts, place * case.parts // case.places)


def build(case: Case, name: str, collectives):
    from locmoe_ops.dispatch.geometry import DispatchOptions, DispatchSetup, FixedCapacities
    from locmoe_ops.dispatch.registry import load_dispatcher

    placement = exchange_of(case, collectives.topology.ep_index(collectives.rank))
    options = DispatchOptions(
        case.chunks, case.share, case.priority, case.overflow, ragged_limit=3.5 if name == TIGHT else None
    )
    capacities = FixedCapacities(case.near, (case.near, case.far), case.copies)
    setup = DispatchSetup(collectives.topology, placement, TOKENS, case.top_k, capacities, options)
    return load_dispatcher(case.kind).build(collectives, setup, name)


def run_case(name: str, rank: int, mesh) -> dict:
    import mindspore as ms
    from mindspore import Parameter, Tensor, nn, ops

    from locmoe_ops.collectives.create import create_collectives
    from locmoe_ops.dispatch.group_wise import AllGatherSlots, ReduceScatterSlots
    from locmoe_ops.tensor_parallel import TensorGroup
    from locmoe_ops.topology import Topology

    case = CASES.get(name, CASES["ragged"])
    own, topology = example(name, rank // case.tensor), Topology(RANKS, case.ranks_per_node, case.places, case.tensor)
    collectives = create_collectives("tcp", topology, rank, mesh, case.gathered)
    tensor = TensorGroup(collectives)

    class Factors(nn.Cell):
        def __init__(self):
            super().__init__()
            held = list(placement_of(case).local_experts(topology.ep_index(rank)))
            self.factor = Parameter(Tensor(factors(case.tensor)[tensor.index][held][:, None]), name="factor")
            if case.share:
                self.enter, self.leave = (
                    AllGatherSlots(collectives, f"{name}/gather"),
                    ReduceScatterSlots(collectives, f"{name}/scatter"),
                )
            else:
                self.enter, self.leave = tensor.copy_in(f"{name}/experts"), tensor.reduce_out(f"{name}/experts")

        def construct(self, buffers):
            return self.leave(self.enter(buffers) * self.factor)

    class Objective(nn.Cell):
        def __init__(self):
            super().__init__()
            self.dispatcher = build(case, name, collectives)
            self.experts = Factors()
            self.repicks = case.overflow == "repick"

        def construct(self, x, weight, second_weight, expert, second, dy):
            seconds = (second, second_weight) if self.repicks else None
            y, context = self.dispatcher.forward(x, expert, weight, weight, self.experts, seconds)
            copies = context["copies"] if self.dispatcher.counts_copies else context["keep_mask"].sum()
            return (y * dy).sum(), y, context["keep_mask"], copies

    class Differentiated(nn.Cell):
        def __init__(self):
            super().__init__()
            self.objective = Objective()
            self.differentiate = ops.value_and_grad(
                self.objective, (0, 1, 2), self.objective.trainable_params(), has_aux=True
            )

        def construct(self, x, weight, second_weight, expert, second, dy):
            (_, y, kept, copies), ((dx, dweight, dsecond), (dfactor,)) = self.differentiate(
                x, weight, second_weight, expert, second, dy
            )
            return y, kept, copies, dx, dweight, dsecond, dfactor

    ms.set_context(mode=ms.GRAPH_MODE if case.compiled else ms.PYNATIVE_MODE)
    step, before = Differentiated(), collectives.bytes_sent()
    for _ in range(2):  # twice: nothing may be left over from a run
        results = step(
            *(Tensor(array) for array in (own.x, own.weight, own.second_weight, own.expert, own.second, own.dy))
        )
        arrays = [tensor.asnumpy() for tensor in results]
    sent = collectives.bytes_sent()
    found = dict(zip(("y", "kept", "copies", "dx", "dweight", "dsecond", "dfactor"), arrays))
    found["between nodes"] = np.array((sent.inter_node - before.inter_node) // 2)
    return {f"{name}/{key}": array for key, array in found.items()}


def sums(rank: int) -> dict:
    """Vectors to be summed over all ranks, by name; the long one is sent in parts."""
    return {size: np.random.default_rng([size, rank]).standard_normal(size).astype(np.float32) for size in (7, 10001)}


def run_sums(rank: int, mesh) -> dict:
    from mindspore import Tensor, dtype

    from locmoe_ops.collectives.create import create_collectives
    from locmoe_ops.collectives.hierarchical_reduce import HierarchicalReduceScatter, all_reduce_of
    from locmoe_ops.topology import Topology

    collectives, found = create_collectives("tcp", Topology(RANKS, 2, RANKS), rank, mesh), {}
    for name, wire in (("sum", None), ("narrow", dtype.float16)):
        for size, own in sums(rank).items():
            before = collectives.bytes_sent("gradient")
            cell = all_reduce_of(collectives, "dp", f"gradient/{name} {size}", wire)
            found[f"{name} {size}/values"] = cell(Tensor(own)).asnumpy()
            after = collectives.bytes_sent("gradient")
            found[f"{name} {size}/between nodes"] = np.array(after.inter_node - before.inter_node)
    stretch = HierarchicalReduceScatter(collectives, "dp", "gradient/stretch", dtype.float16)
    found["stretch"] = stretch(Tensor(sums(rank)[10001][:10000])).asnumpy()
    return found


def run_flight(rank: int, mesh) -> dict:
    """The same vectors, sent one by one while something else is computed, and awaited together."""
    from mindspore import Tensor, dtype, nn

    from locmoe_ops.collectives.create import create_collectives
    from locmoe_ops.topology import Topology

    class AsyncAllToAll(nn.Cell):
        def __init__(self, flight) -> None:
            super().__init__()
            self.starts, self.wait = nn.CellList(list(flight.starts)), flight.wait

        def construct(self, short: Tensor, long: Tensor, control: Tensor) -> tuple:
            first, control = self.starts[0](short, control)
            second, control = self.starts[1](long, control * 2.0)
            return self.wait((first, second), control), control * 2.0

    collectives, own = create_collectives("tcp", Topology(RANKS, 2, RANKS), rank, mesh), sums(rank)
    tensors, control = tuple(Tensor(vector) for vector in own.values()), Tensor(np.ones(1, np.float32))
    shapes, found = [vector.shape for vector in own.values()], {}
    for name, wire in (("flight", None), ("narrow flight", dtype.float16)):
        cell = AsyncAllToAll(collectives.all_reduce_async("dp", f"gradient/{name}", shapes, wire))
        for when in ("first", "second"):
            before = collectives.bytes_sent("gradient")
            totals, after_all = cell(*tensors, control)
            found.update(
                {f"{name} {size}/{when}": total.asnumpy() for size, total in zip(own, totals)}
            )  # waits for the graph
            found[f"{name}/between nodes"] = np.array(collectives.bytes_sent("gradient").inter_node - before.inter_node)
            found[f"{name}/control"] = after_all.asnumpy()
    return found


def main() -> None:
    rank, port, parent, output = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    from locmoe_ops.collectives.tcp.mesh import join_mesh

    gc.freeze()  # MindSpore collects garbage before every graph: what was imported is none
    mesh = join_mesh(
        rank,
        RANKS,
        ("127.0.0.1", port),
        bytes.fromhex(os.environ["MESH_SECRET"]),
        join_timeout=120,
        collective_timeout=300,
        parent_pid=parent,
    )
    results = {**run_sums(rank, mesh), **run_flight(rank, mesh)}
    for name in sorted(
        CASES, key=lambda name: CASES[name].compiled
    ):  # graphs last: PyNative mode is left alone by them
        results.update(run_case(name, rank, mesh))
    try:
        run_case(TIGHT, rank, mesh)
    except Exception:
        pass  # whatever MindSpore makes of it, the mesh keeps the original
    np.savez(output, failure=np.array(str(mesh.failure)), **results)
    mesh.close()


if __name__ == "__main__":
    main()
