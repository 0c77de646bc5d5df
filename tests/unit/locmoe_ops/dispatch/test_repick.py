import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.dispatch.geometry import SlotTable
from locmoe_ops.dispatch.repick import RepickingAssignment

pytestmark = pytest.mark.usefixtures("graph_mode")

EXPERTS, TOKENS = 5, 30
CAPACITY = np.array([8, 2, 12, 3, 40], np.int32)  # room in the last one only, where many tokens want all


def table():
    start = np.cumsum(CAPACITY) - CAPACITY
    return SlotTable(start.astype(np.int32), CAPACITY, start.astype(np.int32), CAPACITY, int(CAPACITY.sum()))


def loop(expert, weight, second, by_weight):
    """What the cell returns, one assignment after another."""
    tokens, top_k = expert.shape
    order = [(t, k) for k in range(top_k) for t in range(tokens)]
    if by_weight:
        order.sort(key=lambda place: -weight[place])
    slots, final, repicked = {e: [] for e in range(EXPERTS)}, expert.T.ravel().copy(), np.zeros((tokens * top_k, 1))
    lost = []
    for t, k in order:
        e = int(expert[t, k])
        if e < EXPERTS and len(slots[e]) < CAPACITY[e]:
            slots[e].append(k * tokens + t)
        elif e < EXPERTS:
            lost.append((t, k))
    for t, k in lost:
        e = int(second[t])
        if k == min(other for token, other in lost if token == t) and e < EXPERTS and len(slots[e]) < CAPACITY[e]:
            slots[e].append(k * tokens + t)
            final[k * tokens + t], repicked[k * tokens + t] = e, 1
    return slots, final, repicked


@pytest.mark.parametrize("by_weight", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_slots_match_a_loop(by_weight, top_k):
    cell = RepickingAssignment(TOKENS, top_k, table(), by_weight)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        drawn = rng.permuted(np.tile(np.arange(EXPERTS), (TOKENS, 1)), axis=1).astype(np.int32)
        expert, second = drawn[:, :top_k].copy(), drawn[:, top_k].copy()
        expert[rng.uniform(size=expert.shape) < 0.1] = EXPERTS
        second[rng.uniform(size=TOKENS) < 0.2] = EXPERTS
        weight = rng.choice(np.float32([0, 0.25, 0.5, 0.75]), expert.shape)  # many ties
        slots, final, repicked = loop(expert, weight, second, by_weight)
        found = {
            name: tensor.asnumpy() for name, tensor in cell(Tensor(expert), Tensor(weight), Tensor(second)).items()
        }
        assert repicked.any()
        assert found["expert"].tolist() == final.tolist() and found["repicked"].tolist() == repicked.tolist()
        start, kept = np.cumsum(CAPACITY) - CAPACITY, np.zeros((TOKENS * top_k, 1))
        for e, inside in slots.items():
            assert found["assignment"][start[e] : start[e] + len(inside)].tolist() == inside
            assert found["slot_mask"][start[e] : start[e] + CAPACITY[e], 0].tolist() == [1] * len(inside) + [0] * (
                CAPACITY[e] - len(inside)
            )
            assert found["slot"][inside].tolist() == list(range(start[e], start[e] + len(inside)))
            kept[inside] = 1
        assert found["keep_mask"].tolist() == kept.tolist()


def test_first_come_first_served_with_what_is_left():
    """All want expert 1, which has two slots; expert 3 has three."""
    expert, second = np.ones((7, 1), np.int32), np.full(7, 3, np.int32)
    found = RepickingAssignment(7, 1, table(), False)(
        Tensor(expert), Tensor(np.ones((7, 1), np.float32)), Tensor(second)
    )
    assert found["expert"].asnumpy().tolist() == [1, 1, 3, 3, 3, 1, 1]
    assert found["keep_mask"].asnumpy().ravel().tolist() == [1, 1, 1, 1, 1, 0, 0]
