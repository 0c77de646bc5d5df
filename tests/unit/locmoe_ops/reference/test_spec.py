import numpy as np
import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.reference.layer import moe_layer
from locmoe_ops.topology import Topology


@pytest.mark.parametrize(
    "changes, fragment",
    [
        ({"router": "random"}, "router is 'random', expected one of hash, switch, locmoe"),
        ({"gate": "mlp"}, "gate is 'mlp'"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"drop_priority": "random"}, "drop_priority is 'random'"),
        ({"statistics": "batch"}, "statistics is 'batch'"),
        ({"top_k": 3}, "top_k is 3, expected 1..2"),
        ({"top_k": 0}, "top_k is 0"),
        ({"router": "hash", "top_k": 3}, "top_k is 3, expected 1..2 (hash router)"),
        ({"hash_score": "sigmoid"}, "hash_score is 'sigmoid', expected one of none"),
        ({"router": "hash", "hash_score": "relu"}, "hash_score is 'relu', expected one of none, softmax"),
        ({"capacity": 0}, "capacity is 0"),
        ({"overflow": "wait"}, "overflow is 'wait', expected one of drop, repick"),
        ({"router": "hash", "overflow": "repick"}, "overflow is 'repick', expected one of drop"),
        ({"far_capacity": -1, "source_nodes": (0, 0)}, "far_capacity is -1"),
        ({"far_capacity": 2}, "source_nodes is None"),
        ({"smoothing": 0.0}, "smoothing is 0.0"),
        ({"normalise": "batch"}, "normalise is 'batch', expected one of none, token"),
        ({"value_scale": 0.0}, "value_scale is 0.0, expected above 0"),
        ({"domain_groups": (0, 2)}, "domain_groups is (0, 2), expected groups 0..1"),
        ({"layout": Topology(4, 2, expert=2)}, "placement.ep is 4, expected layout.expert = 2"),
    ],
)
def test_bad_choice_is_named(make_case, changes, fragment):
    with pytest.raises(InputError) as caught:
        make_case().with_spec(**changes)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    "router, name, value",
    [
        ("locmoe", "domain", 2),
        ("locmoe", "domain", -1),
        ("locmoe", "home", 4),
        ("hash", "token_ids", 11),
        ("hash", "token_ids", -1),
    ],
)
def test_id_out_of_range_is_an_error_not_a_wild_read(make_case, router, name, value):
    case = make_case(router=router)
    getattr(case.ranks[1], name)[3] = value
    with pytest.raises(InputError, match=rf"ranks\[1\].{name} is {value}, expected ids 0\.\."):
        moe_layer(*case)


@pytest.mark.parametrize(
    "options, missing",
    [
        ({"router": "hash"}, "table"),
        ({"router": "switch"}, "gate"),
        ({"router": "locmoe", "gate": "dense"}, "gate"),
    ],
)
def test_missing_router_weights_are_named(make_case, options, missing):
    case = make_case(**options)
    object.__setattr__(case.parameters, missing, None)
    with pytest.raises(InputError, match=missing):
        moe_layer(*case)


def test_hidden_size_not_divisible_by_experts_of_a_group(make_case):
    with pytest.raises(InputError, match="hidden size 7 is not divisible by the 2 experts"):
        moe_layer(*make_case(hidden=7))


@pytest.mark.parametrize("kind, local_to_node_0", [("interleaved", [0, 2]), ("node_grouped", [0, 1])])
def test_local_experts_of_two_nodes(make_case, kind, local_to_node_0):
    # Four ranks hold one expert each, in the order 0, 2, 1, 3 (interleaved) or 0, 1, 2, 3.
    spec = make_case(kind=kind).spec
    assert [e for e in range(4) if spec.is_local(0, e)] == local_to_node_0
    assert [e for e in range(4) if spec.is_local(1, e)] == [e for e in range(4) if e not in local_to_node_0]


def test_every_expert_is_local_where_a_node_holds_whole_copies(make_case):
    spec = make_case(ep=2).spec
    assert all(spec.is_local(node, expert) for node in range(2) for expert in range(4))


def test_inputs_of_lower_precision_are_computed_in_float64(make_case):
    case = make_case()
    exact = moe_layer(*case)
    for tokens in case.ranks:
        object.__setattr__(tokens, "x", tokens.x.astype(np.float32))
    rounded = moe_layer(*case)
    assert rounded.outputs[0].dtype == np.float64
    # Only the inputs were rounded, to 6e-8 relative.
    np.testing.assert_allclose(rounded.outputs[0], exact.outputs[0], rtol=1e-4, atol=1e-5)
