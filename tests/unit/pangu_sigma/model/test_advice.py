import pytest

from locmoe_ops.topology import Topology
from pangu_sigma.model.advice import groups_without_local_experts, locality_advice
from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.sparse import SparseContext


@pytest.fixture
def context(networks):
    def make(groups, experts, nodes, placement="interleaved", data="shuffled", router="locmoe"):
        moe = {
            "num_experts": experts,
            "num_groups": groups,
            "placement": placement,
            "router": {"type": router},
            "layout": {"world_size": nodes, "ranks_per_node": 1, "expert": nodes},
        }
        config = networks.small_config(None, moe, data={"placement": data})
        return SparseContext(
            config, model_dims(config, 3, networks.VOCABULARY, groups), networks.TwinCollectives(0, Topology(1, 1, 1))
        )

    return make


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ((1, 8, 4), {}),
        ((2, 8, 4), {}),  # four experts a group, one on each node
        (
            (4, 8, 4),
            {0: [2, 3], 1: [0, 1], 2: [2, 3], 3: [0, 1]},
        ),  # expert j of group g at position 4 j + g, two positions a node
        ((2, 4, 4), {0: [1], 1: [0], 2: [1], 3: [0]}),  # one expert a node, of one group
        ((2, 4, 4, "node_grouped"), {0: [1], 1: [1], 2: [0], 3: [0]}),
        ((4, 8, 4, "node_grouped", "domain_by_node"), {}),  # nodes see only the domain whose group they hold
    ],
)
def test_groups_that_a_node_has_no_expert_of(context, arguments, expected):
    assert groups_without_local_experts(context(*arguments)) == expected


def test_advice_names_node_and_group(context):
    lines = locality_advice(context(2, 4, 4))
    assert lines[0].startswith("warning: 4 of 4 nodes hold no expert for some of their tokens (node 0: group 1)")
    assert "moe.num_experts / moe.num_groups is 2; with 4 or more" in lines[1]


@pytest.mark.parametrize("arguments", [(1, 8, 4), (2, 4, 1), (2, 4, 4, "interleaved", "shuffled", "switch")])
def test_no_advice_where_there_is_none_to_give(context, arguments):
    assert locality_advice(context(*arguments)) == []
