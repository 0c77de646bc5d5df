"""What is read off a collective and a MindIR file, against values written by hand."""

import json

import pytest

from helpers.rank_graphs import WORLD, collective
from locmoe_ops.collectives.hccl import PHASE, TAG
from pangu_sigma.audit.graph import read_rank

TENSORS = {"float32": 1, "float16": 10}


@pytest.mark.parametrize(
    ("operation", "shape", "put_in"),
    [
        ("all_to_all", (4, 4, 3), 48),
        ("all_gather", (4, 5), 5),  # the result holds the parts of all four
        ("reduce_scatter", (5,), 20),  # and is one of four here
        ("all_reduce", (), 1),
        ("all_to_all_v", (-1,), -1),
    ],
)
def test_numbers_put_in(operation, shape, put_in):
    found = collective(operation, "world", WORLD, shape, "all_to_all/layer 0")
    assert found.elements == put_in and found.is_fixed == (put_in > 0)


@pytest.mark.parametrize(
    ("tag", "cause"),
    [
        ("all_to_all/layer 0/dispatch", "all_to_all"),
        ("gradient/0/scatter", "gradient"),
        ("tensor/attention", "tensor"),
        ("layer 0/statistics", "other"),
    ],
)
def test_cause_is_how_the_tag_begins(tag, cause):
    assert collective("all_reduce", "world", WORLD, (), tag).cause == cause


def test_a_collective_in_words():
    found = collective("all_to_all", "world", WORLD, (4, 3), "all_to_all/layer 0", "backward")
    assert str(found) == "all_to_all 'all_to_all/layer 0' (backward) of 4 x 3 float32 in world"


@pytest.fixture
def written(tmp_path):
    """Writes the graph of rank 0: an all-to-all of the given shape, then a Print; functions: subgraphs."""
    from mindspore.train import mind_ir_pb2

    def write(shape, functions=0):
        model = mind_ir_pb2.ModelProto()
        primitive = model.primitives.add(name="AlltoAll:1", op_type="AlltoAll")
        for name, text in (("group", "world"), (TAG, "all_to_all/layer 0"), (PHASE, "forward")):
            primitive.attribute.add(name=name).s = text.encode()
        model.graph.node.add(op_type="REF::AlltoAll:1", domain="Default/network-Net/layer-Layer/AlltoAll-op0")
        model.graph.node.add(op_type="Print", domain="Default/network-Net/Print-op1")
        attribute = model.graph.node[0].attribute.add(name="shape")
        attribute.tensors.add(dims=shape, data_type=TENSORS["float16"])
        for _ in range(functions):
            model.functions.add()
        (tmp_path / "step_0.mindir").write_bytes(model.SerializeToString())
        (tmp_path / "rank_0.json").write_text(json.dumps({"graphs": [["step", 2]], "groups": {"world": [0, 1]}}))
        return tmp_path

    return write


def test_a_rank_is_read_back(written):
    found = read_rank(written([2, 8]), 0, dynamic=False)
    assert (found.rank, found.groups) == (0, {"world": (0, 1)})
    (graph,) = found.graphs
    assert (graph.name, graph.times) == ("step", 2)
    (one,) = graph.collectives
    assert (one.operation, one.group, one.members, one.shape) == ("all_to_all", "world", (0, 1), (2, 8))
    assert (one.dtype, one.item, one.tag, one.phase) == ("float16", 2, "all_to_all/layer 0", "forward")
    assert one.where == "network/layer"
    assert graph.faults == ("Print in network, which leaves the device",)


@pytest.mark.parametrize("dynamic", [False, True])
def test_faults(written, dynamic):
    (graph,) = read_rank(written([-1, 8], functions=1), 0, dynamic).graphs
    assert graph.faults[0] == "1 subgraphs, expected none: what they exchange would depend on values"
    unknown = "AlltoAll in network/layer has a shape that only the run knows"
    assert (unknown in graph.faults) == (not dynamic)
