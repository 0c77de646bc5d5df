"""Kinds of parameters by name, against lists written by hand. tests/unit/pangu_sigma/planner/test_parameters.py
compares them with built networks.
"""

import subprocess
import sys
from collections import namedtuple
from operator import attrgetter

import pytest

from locmoe_ops.shard_spec import ShardSpec
from pangu_sigma.model.parameter_groups import (
    decays,
    is_expert_parameter,
    is_map_weight,
    ordered_parameters,
    split_axis,
)

BLOCK, SPARSE = "blocks.0", "blocks.1.feed_forward"
# name: in an expert, decays, weight of a linear map, axis that tensor parallelism splits
KINDS = {
    "embedding.word": (False, True, False, 0),
    "embedding.position": (False, True, False, None),
    f"{BLOCK}.attention_norm.gamma": (False, False, False, None),
    f"{BLOCK}.attention_norm.beta": (False, False, False, None),
    f"{BLOCK}.attention.key.weight": (False, True, True, 0),
    f"{BLOCK}.attention.value.bias": (False, False, False, 0),
    f"{BLOCK}.attention.project.weight": (False, True, True, 1),
    f"{BLOCK}.attention.project.bias": (False, False, False, None),
    f"{BLOCK}.feed_forward.w_in.weight": (False, True, True, 0),
    f"{BLOCK}.feed_forward.w_in.bias": (False, False, False, 0),
    f"{BLOCK}.feed_forward.w_out.weight": (False, True, True, 1),
    f"{BLOCK}.feed_forward.w_out.bias": (False, False, False, None),
    f"{SPARSE}.routing.router.gate.weight": (False, True, False, None),
    f"{SPARSE}.experts.w_in": (True, True, False, 2),
    f"{SPARSE}.experts.b_in": (True, False, False, 2),
    f"{SPARSE}.experts.w_out": (True, True, False, 1),
    f"{SPARSE}.experts.b_out": (True, False, False, None),
    "query_layer.top_query": (False, True, False, None),
}
Tensor = namedtuple("Tensor", ["name", "shard"])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("moment", ["", "adam_m.", "adam_v."])
def test_kinds_of_a_name(name, moment):
    """A moment is of its weight's kind."""
    own = moment + name
    assert (is_expert_parameter(own), decays(own), is_map_weight(own), split_axis(own)) == KINDS[name]


def test_order_by_hand():
    """Maps from the top down; then matrices, of these whole ones first; then norms and biases; then experts."""
    names = [
        "embedding.word",
        "embedding.position",
        f"{BLOCK}.attention_norm.gamma",
        f"{BLOCK}.attention.query.weight",
        f"{BLOCK}.attention.query.bias",
        f"{BLOCK}.attention.project.weight",
        f"{SPARSE}.experts.b_in",
        f"{SPARSE}.experts.w_out",
        "query_layer.top_query",
    ]
    given = [Tensor(name, None if split_axis(name) is None else ShardSpec(split_axis(name), 0, 2)) for name in names]
    found = [tensor.name for tensor in ordered_parameters(given, attrgetter("shard"))]
    assert found == [names[place] for place in (5, 3, 1, 8, 0, 2, 4, 7, 6)]


def test_needs_no_mindspore():
    program = "import sys; import pangu_sigma.model.parameter_groups; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
