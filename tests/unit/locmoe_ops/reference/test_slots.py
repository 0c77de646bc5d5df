import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locmoe_ops.reference.slots import keep_within_capacity, repick, share_copies


def test_first_come_first_served():
    kept = keep_within_capacity(np.array([[0], [1], [0], [0], [1]]), np.ones((5, 1)), 2, "position")
    assert kept[:, 0].tolist() == [True, True, True, False, True]


def test_all_first_choices_come_before_any_second_choice():
    # Token 0's second choice and token 1's first choice want expert 1, which has one slot.
    expert = np.array([[0, 1], [1, 0]])
    kept = keep_within_capacity(expert, np.array([[0.6, 0.4], [0.6, 0.4]]), 1, "position")
    assert kept.tolist() == [[True, False], [True, False]]


def test_larger_gate_weights_come_first():
    expert, weight = np.zeros((4, 1), int), np.array([[0.3], [0.9], [0.5], [0.7]])
    assert keep_within_capacity(expert, weight, 2, "weight")[:, 0].tolist() == [False, True, False, True]


def test_second_choice_of_larger_weight_takes_the_slot():
    expert = np.array([[0, 1], [1, 0]])
    kept = keep_within_capacity(expert, np.array([[0.5, 0.5], [0.4, 0.3]]), 1, "weight")
    assert kept.tolist() == [[True, True], [False, False]]


def test_equal_gate_weights_keep_their_positions():
    expert, weight = np.zeros((4, 1), int), np.array([[0.5], [0.7], [0.5], [0.5]])
    assert keep_within_capacity(expert, weight, 2, "weight")[:, 0].tolist() == [True, True, False, False]


@pytest.mark.parametrize("priority", ["position", "weight"])
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), capacity=st.integers(1, 12))
def test_every_expert_keeps_as_many_as_it_has_slots_for(priority, seed, capacity):
    rng = np.random.default_rng(seed)
    expert, weight = rng.integers(0, 4, (10, 2)), rng.random((10, 2))
    kept = keep_within_capacity(expert, weight, capacity, priority)
    wanted = np.bincount(expert.ravel(), minlength=4)
    assert np.bincount(expert[kept], minlength=4).tolist() == np.minimum(wanted, capacity).tolist()


def test_capacities_may_differ_and_ids_beyond_have_none():
    expert = np.array([[0], [1], [1], [2], [0]])
    kept = keep_within_capacity(expert, np.ones((5, 1)), [1, 2], "position")
    assert kept[:, 0].tolist() == [True, True, True, False, False]


def test_repicked_in_order_until_the_slots_are_taken():
    expert, second = np.array([[0], [0], [0], [0], [1]]), np.array([1, 1, 1, 1, 0])
    kept = keep_within_capacity(expert, np.ones((5, 1)), [1, 3], "position")
    assert kept[:, 0].tolist() == [True, False, False, False, True]
    moved = repick(expert, np.ones((5, 1)), kept, second, [1, 3], "position")
    assert moved[:, 0].tolist() == [False, True, True, False, False]  # expert 1 has two slots left


def test_repicked_by_the_weight_with_which_they_lost():
    expert, weight, second = np.zeros((4, 1), int), np.array([[0.9], [0.2], [0.4], [0.3]]), np.full(4, 1)
    kept = keep_within_capacity(expert, weight, [1, 1], "weight")
    assert repick(expert, weight, kept, second, [1, 1], "weight")[:, 0].tolist() == [False, False, True, False]


def test_one_choice_of_a_token_is_repicked():
    expert = np.array([[0, 1], [0, 1], [1, 0]])
    kept = keep_within_capacity(expert, np.ones((3, 2)), [1, 1, 9], "position")
    assert kept.tolist() == [[True, False], [False, False], [True, False]]
    moved = repick(expert, np.ones((3, 2)), kept, np.array([2, 2, -1]), [1, 1, 9], "position")
    assert moved.tolist() == [[False, True], [True, False], [False, False]]


@pytest.mark.parametrize(
    ("copies", "priority", "carried"),
    [
        (3, "position", [[1, 1, 1], [1, 1, 1], [1, 1, 0]]),  # room for every token; what lost its slot stays lost
        (2, "position", [[1, 1, 1], [1, 1, 0], [1, 1, 0]]),  # token 1 wants node 1 by a third choice alone
        (1, "position", [[1, 1, 1], [1, 1, 0], [0, 1, 0]]),
        (1, "weight", [[0, 1, 0], [1, 1, 0], [1, 1, 0]]),  # token 2 wants it most
        (0, "position", [[0, 1, 0], [1, 1, 0], [0, 1, 0]]),
    ],
)
def test_one_copy_carries_all_that_a_token_wants_of_a_node(copies, priority, carried):
    """Experts 0 and 1 are on the own node, 2 and 3 on node 1, which tokens 0 and 2 want by their first choices."""
    expert = np.array([[2, 0, 3], [0, 1, 2], [3, 1, 2]])
    weight = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
    kept = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0]], bool)
    found = share_copies(expert, weight, kept, [0, 0, 1, 1], 0, copies, priority)
    assert found.tolist() == np.array(carried, bool).tolist()


def test_each_other_node_has_room_of_its_own():
    expert = np.array([[0, 2], [1, 3], [2, 1]])
    found = share_copies(expert, np.ones((3, 2)), np.ones((3, 2), bool), [1, 1, 2, 2], 0, 1, "position")
    assert found.tolist() == [[True, False], [False, False], [True, False]]
