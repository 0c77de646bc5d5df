"""The HCCL graph of four ranks, compiled on CPU under msrun and read back: every rank must run the same exchanges."""

import json
from pathlib import Path

import pytest

from helpers.ranks import run_under_msrun
from locmoe_ops.collectives import hccl
from locmoe_ops.collectives.interface import RankGroup
from locmoe_ops.topology import Topology

WORLD = 4
HERE = Path(__file__).resolve().parent

# Operation and kind of group of `hccl_worker`'s network, then of its adjoints in reverse.
EXPECTED = [
    ("AlltoAllVC", "world"),
    ("AlltoAll", "world"),
    ("AllGather", "node"),
    ("ReduceScatter", "rail"),
    ("Broadcast", "node"),
    ("AllReduce", "world"),
    ("AllReduce", "world"),
    ("AllReduce", "node"),
    ("AllGather", "rail"),
    ("ReduceScatter", "node"),
    ("AlltoAll", "world"),
    ("AlltoAllVC", "world"),
]
# A split region's sum; a share's way out, put together, summed into shares, back, and put together at home. Then the
# adjoints.
EXPECTED_SPLIT = [
    ("AllReduce", "tp"),
    ("AlltoAll", "ep"),
    ("AllGather", "tp"),
    ("ReduceScatter", "tp"),
    ("AlltoAll", "ep"),
    ("AllGather", "tp"),
    ("AlltoAll", "ep"),
    ("AllGather", "tp"),
    ("ReduceScatter", "tp"),
    ("AlltoAll", "ep"),
    ("AllGather", "tp"),
    ("AllReduce", "tp"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the workers wrote their graphs."""
    folder = tmp_path_factory.mktemp("hccl")
    done = run_under_msrun(WORLD, 400, folder, HERE / "hccl_worker.py", folder)
    # What counts is that every rank has written all of its graphs, the last file of which is this one: MindSpore 2.10
    # was seen to crash on a rank while it shut its cluster down.
    missing = [rank for rank in range(WORLD) if not (folder / f"graph_{rank}.json").exists()]
    assert not missing, f"ranks {missing}: " + done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def nodes(folder, rank, graph="graph"):
    """(operation, inputs, outputs, attributes) of every node of a rank's graph, in order."""
    from mindspore.train import mind_ir_pb2

    model = mind_ir_pb2.ModelProto()
    model.ParseFromString((folder / f"{graph}_{rank}.mindir").read_bytes())
    attributes = {
        primitive.name: {a.name: a.s.decode() or a.i for a in primitive.attribute} for primitive in model.primitives
    }
    for node in model.graph.node:
        reference = node.op_type.replace("REF::", "")
        yield reference.split(":")[0], list(node.input), list(node.output), attributes.get(reference, {})


def router_spec(group):
    return group.split("_")[1] if group.startswith("locmoe_") else "world"


@pytest.mark.parametrize("rank", range(WORLD))
def test_every_rank_runs_each_exchange_once_in_the_same_order(folder, rank):
    found = [
        (name, router_spec(attributes["group"]))
        for name, _, _, attributes in nodes(folder, rank)
        if "group" in attributes
    ]
    assert found == EXPECTED


@pytest.mark.parametrize("rank", range(WORLD))
def test_a_tensor_parallel_layer_compiles(folder, rank):
    found = [
        (name, router_spec(attributes["group"]), attributes["group"])
        for name, _, _, attributes in nodes(folder, rank, "split")
        if "group" in attributes
    ]
    assert [operation[:2] for operation in found] == EXPECTED_SPLIT
    assert {group for *_, group in found} == {f"locmoe_tp_{rank // 2 * 2}_2", f"locmoe_ep_{rank % 2}_2"}


@pytest.mark.parametrize("rank", range(WORLD))
def test_ragged_dispatch_tells_its_counts_once(folder, rank):
    found = [name for name, _, _, attributes in nodes(folder, rank, "ragged") if "group" in attributes]
    assert found == [
        "AllGather",
        "AlltoAllVC",
        "AlltoAllVC",
        "AlltoAllVC",
        "AlltoAllVC",
    ]  # there, home; there and home with gradients


def test_groups_are_those_of_the_topology(folder):
    names = [
        {
            attributes["group"]
            for _, _, _, attributes in nodes(folder, rank)
            if attributes.get("group", "").startswith("locmoe_")
        }
        for rank in range(WORLD)
    ]
    assert names == [
        {"locmoe_node_0_2", "locmoe_rail_0_2"},
        {"locmoe_node_0_2", "locmoe_rail_1_2"},
        {"locmoe_node_2_2", "locmoe_rail_0_2"},
        {"locmoe_node_2_2", "locmoe_rail_1_2"},
    ]


def test_broadcast_comes_from_the_global_rank(folder):
    roots = [
        attributes["root_rank"]
        for rank in range(WORLD)
        for name, _, _, attributes in nodes(folder, rank)
        if name == "Broadcast"
    ]
    assert roots == [1, 1, 3, 3]


def test_products_of_sums_are_not_rewritten(folder):
    """The compiler would pull `AddN` under the AllReduce of `share`'s gradient; it must come after the product."""
    for rank in (1, 3):  # the roots, where that sum is used
        graph = list(nodes(folder, rank))
        producer = {output: (name, inputs) for name, inputs, outputs, _ in graph for output in outputs}
        sums = [
            inputs
            for name, inputs, _, attributes in graph
            if name == "AllReduce" and router_spec(attributes["group"]) == "node"
        ]
        assert len(sums) == 1
        name, inputs = "Reshape", sums[0]
        while name == "Reshape":
            name, inputs = producer[inputs[0]]
        assert name == "AllReduce"  # the gradient of `total`, as it is


def test_a_barrier_is_a_graph(folder):
    """Not an operator by itself, which HCCL does not take in a group that graphs use."""
    for rank in range(WORLD):
        assert json.loads((folder / f"graph_{rank}.json").read_text())["meetings"] == 1


def test_bytes_are_said_not_to_be_counted(folder):
    for rank in range(WORLD):
        assert json.loads((folder / f"graph_{rank}.json").read_text())["counted"] is False


@pytest.mark.parametrize("rank", range(WORLD))
def test_jobs_that_follow_each_other_have_groups_of_their_own(folder, rank):
    """Expert and tensor parallel 2 x 2, then 2 x 1, whose experts' pairs are the nodes' ranks, then 2 x 2 again."""
    here, rail = [rank // 2 * 2, rank // 2 * 2 + 1], [rank % 2, rank % 2 + 2]
    split = [{f"job{number}_tp_{here[0]}_2": here, f"job{number}_ep_{rail[0]}_2": rail} for number in (0, 2)]
    plain = {f"job1_ep_{here[0]}_2": here, f"job1_edp_{rail[0]}_2": rail}
    assert json.loads((folder / f"graph_{rank}.json").read_text())["jobs"] == [split[0], plain, split[1]]


@pytest.mark.parametrize("rank", range(WORLD))
def test_functions_that_mindspore_has_on_cpu(folder, rank):
    """Ranks 0 to 3 sum up to 6, those of node 0 to 1 and of node 1 to 5; the second of a group is its root. The value
    of an objective of 6 numbers, and the gradients of them all.
    """
    found = json.loads((folder / f"graph_{rank}.json").read_text())["functions"]
    node, root_of_node = (1, 1) if rank < 2 else (5, 3)
    for group, total, root in (("world", 6, 1), ("node", node, root_of_node)):
        at_root = float(total if rank == root else 0)
        assert found[group] == [[6.0 * rank * total] + [float(total)] * 6, [6.0 * rank * root] + [at_root] * 6]


def test_a_communicator_is_of_ranks_and_a_purpose(monkeypatch):
    """Expert- and data-parallel groups of the same ranks share one for layers; gradients have another; of all ranks the
    world's is for layers.
    """
    made = []
    monkeypatch.setattr(hccl, "create_group", lambda name, ranks: made.append((name, ranks)))
    collectives = hccl.HcclCollectives(1, Topology(4, 2, 2, 2))

    def name(kind, tag):
        return collectives._group_name(RankGroup(kind, collectives.topology.group_of(kind, 1)), tag)

    assert name("ep", "all_to_all/layer 0/dispatch") == name("dp", "layer 0/statistics") == "locmoe_ep_1_2"
    assert name("dp", "gradient/overlap 0") == name("dp", "gradient/dense/0") == "locmoe_dp_1_2_gradients"
    assert name("world", "gradient/norm") == hccl.GlobalComm.WORLD_COMM_GROUP
    assert made == [("locmoe_ep_1_2", [1, 3]), ("locmoe_dp_1_2_gradients", [1, 3])]
    assert collectives.groups == {hccl.GlobalComm.WORLD_COMM_GROUP: (0, 1, 2, 3), **{n: tuple(r) for n, r in made}}
    alone = hccl.HcclCollectives(0, Topology(2, 2))
    whole = RankGroup("dp", (0, 1))
    assert alone._group_name(whole, "gradient/overlap 0") == "locmoe_dp_0_2_gradients"  # not the world's
