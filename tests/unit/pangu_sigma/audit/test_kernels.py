"""Kernels counted in a graph written by hand, and read off scopes as MindSpore writes them."""

import json

import pytest

from pangu_sigma.audit.graph import read_rank
from pangu_sigma.audit.kernels import GraphOperator, by_cell, by_operator, launches

STEP = "differentiate/objective/network"
OPERATORS = [
    GraphOperator("Reshape", f"{STEP}/blocks/0/attention/core"),
    GraphOperator("MatMul", f"{STEP}/blocks/0/attention/query"),
    GraphOperator("BiasAdd", f"{STEP}/blocks/0/attention/query/add_bias"),
    GraphOperator("MatMul", f"{STEP}/blocks/0/feed_forward/w_in"),
    GraphOperator("TupleGetItem", f"{STEP}/blocks/0"),
    GraphOperator("AssignAdd", "accumulators"),
    GraphOperator("Depend", ""),
]


def test_what_moves_nothing_is_no_kernel():
    assert launches(OPERATORS) == 4
    assert by_operator(OPERATORS) == {"MatMul": 2, "BiasAdd": 1, "AssignAdd": 1}


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (2, {"blocks/0": 3, "accumulators": 1}),
        (3, {"blocks/0/attention": 2, "blocks/0/feed_forward": 1, "accumulators": 1}),
    ],
)
def test_cells_are_told_apart_down_to_a_level(levels, expected):
    assert by_cell(OPERATORS, levels) == expected


def test_scopes_of_both_passes_name_the_cell(tmp_path):
    from mindspore.train import mind_ir_pb2

    cell = "Default/differentiate-BatchGradients/objective-Objective/network-PanGuSigma/final_norm-LayerNorm"
    model = mind_ir_pb2.ModelProto()
    for domain in (f"{cell}/LayerNorm-op0", f"Gradients/{cell}/Grad_LayerNorm/LayerNormGrad-op1", "Default/Add-op2"):
        model.graph.node.add(op_type=domain.rpartition("/")[2].partition("-")[0], domain=domain)
    (tmp_path / "step_0.mindir").write_bytes(model.SerializeToString())
    (tmp_path / "rank_0.json").write_text(json.dumps({"graphs": [["step", 1]], "groups": {}}))
    (graph,) = read_rank(tmp_path, 0, dynamic=False).graphs
    assert [one.where for one in graph.operators] == [f"{STEP}/final_norm"] * 2 + [""]
    assert by_cell(graph.operators) == {"final_norm": 2, "": 1}
