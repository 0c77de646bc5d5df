import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.dispatch.geometry import uniform_slots
from locmoe_ops.dispatch.slots import SlotAssignment

pytestmark = pytest.mark.usefixtures("graph_mode")

EXPERTS = 6
POSITION_OF = np.array([3, 0, 5, 1, 4, 2], np.int32)


def loop(expert, weight, capacity, by_weight):
    """What the cell returns, one assignment after another."""
    expert, weight = expert.T.ravel(), weight.T.ravel()
    order = sorted(range(len(expert)), key=lambda i: (-weight[i] if by_weight else 0, i))
    slot, kept = np.zeros(len(expert), int), np.zeros((len(expert), 1))
    assignment, filled = np.zeros(EXPERTS * capacity, int), np.zeros((EXPERTS * capacity, 1))
    taken = dict.fromkeys(range(EXPERTS), 0)
    for i in order:
        if taken[expert[i]] < capacity:
            slot[i] = POSITION_OF[expert[i]] * capacity + taken[expert[i]]
            taken[expert[i]] += 1
            assignment[slot[i]], filled[slot[i]], kept[i] = i, 1, 1
    return {"slot": slot, "keep_mask": kept, "assignment": assignment, "slot_mask": filled}


def scattered(tokens, top_k, rng):
    expert = rng.permuted(np.tile(np.arange(EXPERTS), (tokens, 1)), axis=1)[:, :top_k]
    return expert, rng.uniform(size=(tokens, top_k))


def tied(tokens, top_k, rng):
    """Three weights only, among them 0 and two neighbouring float32 numbers."""
    expert, _ = scattered(tokens, top_k, rng)
    return expert, rng.choice(np.array([0, 0.25, np.nextafter(np.float32(0.25), np.float32(1))]), (tokens, top_k))


def one_expert(tokens, top_k, rng):
    expert, weight = scattered(tokens, top_k, rng)
    expert[:, 0] = 2
    return expert, weight


def tiny_weights(tokens, top_k, rng):
    """Weights over the whole range of float32, the smallest normal number included."""
    expert, _ = scattered(tokens, top_k, rng)
    return expert, 2.0 ** rng.integers(-126, 1, (tokens, top_k))


@pytest.mark.parametrize("by_weight", [False, True])
@pytest.mark.parametrize("top_k, capacity", [(1, 3), (2, 4), (1, 50), (3, 1)])
def test_slots_match_a_loop(by_weight, top_k, capacity):
    tokens, rng = 50, np.random.default_rng(capacity)
    cell = SlotAssignment(tokens, top_k, uniform_slots(POSITION_OF, capacity), by_weight)
    for draw in (scattered, tied, one_expert, tiny_weights):
        expert, weight = (array.astype(kind) for array, kind in zip(draw(tokens, top_k, rng), (np.int32, np.float32)))
        found = {name: tensor.asnumpy() for name, tensor in cell(Tensor(expert), Tensor(weight)).items()}
        expected = loop(expert, weight, capacity, by_weight)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert np.array_equal(found[name], array), f"{draw.__name__}: {name}"


@pytest.mark.parametrize("by_weight", [False, True])
def test_one_token(by_weight):
    found = SlotAssignment(1, 1, uniform_slots(POSITION_OF, 1), by_weight)(
        Tensor([[4]]), Tensor(np.array([[0.5]], np.float32))
    )
    assert found["slot"].asnumpy().tolist() == [4] and found["slot_mask"].asnumpy().ravel().tolist() == [
        0,
        0,
        0,
        0,
        1,
        0,
    ]
