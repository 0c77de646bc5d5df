"""What follows from the keys, against numbers worked out by hand."""

import pytest

from locmoe_ops.topology import Topology
from pangu_sigma.config import derived
from pangu_sigma.config.load import config_from_dict

PLAIN = config_from_dict({"model": {"hidden_size": 48, "sequence_length": 10}, "train": {"global_batch_size": 24}})


def make(model, moe=None, train=None):
    return config_from_dict({"model": model, "moe": moe or {}, "train": train or {}})


def test_inner_width_is_four_times_the_hidden_size_unless_given():
    assert derived.ffn_hidden_size(PLAIN) == 192
    assert derived.ffn_hidden_size(make({"hidden_size": 48, "ffn_hidden_size": 20})) == 20


def test_the_query_layer_counts_where_it_has_experts():
    for query, sparse in ((False, 3), (True, 4)):
        config = make({"dense_layers": 2, "sparse_layers": 3, "sparse_query_layer": query})
        assert derived.num_blocks(config) == 5 and derived.num_sparse_layers(config) == sparse
    assert not derived.has_experts(make({"sparse_layers": 0}))
    assert derived.has_experts(make({"sparse_layers": 0, "sparse_query_layer": True}))


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        ("none", "none none none none none"),
        ("attention", "attention attention attention attention attention"),
        ("sparse", "none none all all all"),
        ("all", "all all all all all"),
        (1, "all none none none none"),
        (5, "all all all all all"),
    ],
)
def test_what_is_recomputed_of_each_layer(asked, parts):
    """Two dense layers, two with experts, and the query layer, which has experts too."""
    model = {"dense_layers": 2, "sparse_layers": 2, "sparse_query_layer": True}
    assert derived.recomputed_parts(make(model, train={"recompute": asked})) == tuple(parts.split())


def test_the_query_layer_is_dense_unless_told_otherwise():
    config = make({"dense_layers": 1, "sparse_layers": 1}, train={"recompute": "sparse"})
    assert derived.recomputed_parts(config) == ("none", "all", "none")


def test_a_group_has_its_share_of_the_experts():
    assert derived.experts_per_group(make({}, {"num_experts": 12, "num_groups": 3})) == 4


def test_a_word_table_for_each_domain_only_where_asked_for():
    assert derived.num_word_tables(PLAIN, 3) == 1
    assert derived.num_word_tables(make({"domain_embeddings": True}), 3) == 3


def test_sequences_and_tokens_of_a_step():
    """24 sequences of 10 tokens: on 4 ranks 6 at once, or 3 micro-batches of 2."""
    assert derived.tokens_per_step(PLAIN) == 240
    assert derived.micro_batch_sequences(PLAIN, 4) == 6 and derived.micro_batches_per_step(PLAIN, 4) == 1
    config = make({}, train={"global_batch_size": 24, "micro_batch_size": 2})
    assert derived.micro_batch_sequences(config, 4) == 2 and derived.micro_batches_per_step(config, 4) == 3
    assert derived.micro_batch_sequences(make({}, train={"global_batch_size": 2}), 4) == 1


def test_a_job_is_on_one_node_unless_told_otherwise():
    parallel = {"expert": 2, "tensor": 2}
    assert derived.job_topology(config_from_dict({"parallel": parallel}), 8) == Topology(8, 8, 2, 2)
    assert derived.job_topology(config_from_dict({"parallel": {**parallel, "ranks_per_node": 4}}), 8) == Topology(
        8, 4, 2, 2
    )


def test_the_last_step_is_that_of_the_run_or_where_it_is_cut_off():
    assert derived.last_step(make({}, train={"steps": 9})) == 9
    assert derived.last_step(make({}, train={"steps": 9, "stop_after": 4})) == 4


MIXED = {
    "router": {"type": "switch", "top_k": 2, "balance_rate": 0.01, "locality_bias": {"kind": "bias"}},
    "routers": [
        {"layers": [4, 0, 1], "type": "hash", "hash": {"weights": "gate"}},
        {"layers": [2], "switch": {"jitter": 0.1}, "locality_bias": False},
    ],
}


def test_each_layer_has_the_router_that_names_it():
    config = make({"sparse_layers": 5, "sparse_query_layer": True}, MIXED)
    found = derived.layer_routers(config)
    assert [one.type for one in found] == ["hash", "hash", "switch", "switch", "hash", "switch"]
    first, second = "moe.routers[0]", "moe.routers[1]"
    assert derived.router_keys(config) == (first, first, second, "moe.router", first, "moe.router")
    assert [one.own.weights for one in found if one.type == "hash"] == ["gate"] * 3
    assert [one.own.jitter for one in found if one.type == "switch"] == [0.1, 0.0, 0.0]
    # What all share holds where it is taken.
    assert [one.balance_rate for one in found] == [0.0, 0.0, 0.01, 0.01, 0.0, 0.01]
    assert [one.locality_bias.kind for one in found] == ["none", "none", "none", "bias", "none", "bias"]
    assert {one.top_k for one in found} == {2}
    assert derived.router_names(config) == "hash (0-1, 4), switch (2-3, 5)"


def test_layers_take_the_balance_that_their_router_has_a_bias_for():
    moe = {
        "router": {"type": "switch", "balance": {"kind": "quantile"}},
        "routers": [{"layers": [0], "type": "hash"}, {"layers": [1], "type": "moge"}],
    }
    found = derived.layer_routers(make({"sparse_layers": 3}, moe))
    assert [one.balance.kind for one in found] == ["none", "none", "quantile"]  # moge takes sign and pid


def test_routers_of_layers_are_pinned_each():
    """Eight experts on four ranks of two nodes: a device group a rank, a block a node."""
    moe = {
        "num_experts": 8,
        "router": {"type": "moge", "top_k": 4},
        "routers": [{"layers": [0], "type": "node_limited"}, {"layers": [1], "type": "hash"}],
    }
    config = make({"sparse_layers": 3}, moe)
    first, second, third = derived.layer_routers(derived.pin_routers(config, Topology(4, 2, 4)))
    assert first.own.node_groups == 2 and third.own.device_groups == 4
    was = derived.layer_routers(config)[1]
    assert (second.type, second.own) == (was.type, was.own) and second.type == "hash"


def test_without_entries_all_layers_have_the_one_router():
    config = make({"sparse_layers": 3}, {"router": MIXED["router"]})
    assert derived.layer_routers(config) == (config.moe.router,) * 3
    assert derived.router_names(config) == "switch" == derived.router_names(make({"sparse_layers": 0}, MIXED))


def test_costs_are_those_of_each_layer_s_router():
    moe = {"num_experts": 8, "router": {"type": "switch"}, "routers": [{"layers": [1], "type": "hash"}]}
    config = make({"sparse_layers": 3, "hidden_size": 32}, moe)
    gate, none = (8 * 32, "asked"), (0, "none")
    assert [(cost.products, cost.statistics) for cost in derived.router_costs(config)] == [gate, none, gate]
