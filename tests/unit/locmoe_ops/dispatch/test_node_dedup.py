"""Which assignments share a copy, against loops; four ranks that exchange them: tests/distributed/test_dispatch.py."""

import numpy as np
import pytest

from mindspore import Tensor, nn

from locmoe_ops.dispatch.geometry import DispatchOptions, DispatchSetup, FixedCapacities, two_tier_slots
from locmoe_ops.dispatch.node_dedup import CopySlots, ExpandRows, FoldRows
from locmoe_ops.dispatch.repick import slot_assignment
from locmoe_ops.dispatch.specs.node_dedup import node_dedup_slots
from locmoe_ops.reference.slots import keep_within_capacity, share_copies
from locmoe_ops.topology import ExpertPlacement, Topology

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures("graph_mode")]

EXPERTS, TOKENS, TOP_K, NEAR, FAR, COPIES, OWN = 6, 20, 3, 5, 4, 6, 1
NODE = [0, 0, 1, 1, 2, 2]  # of each expert: three nodes of one rank


class Slots(nn.Cell):
    """The slots of experts, and of copies: tensors one by one."""

    def __init__(self, priority):
        super().__init__()
        placement = ExpertPlacement(EXPERTS, 1, 3, "node_grouped")
        options = DispatchOptions(drop_priority=priority)
        capacities = FixedCapacities(0, (NEAR, FAR), COPIES)
        setup = DispatchSetup(Topology(3, 1, 3), placement, TOKENS, TOP_K, capacities, options)
        slots = node_dedup_slots(setup)
        assert (slots.intra_node, slots.capacity, slots.copies) == (NEAR, FAR, COPIES)
        self.slots = slot_assignment(setup, two_tier_slots(setup, OWN, NEAR, FAR, in_both=False))
        self.copies = CopySlots(setup, slots)

    def construct(self, expert, weight):
        found = self.copies(self.slots(expert, weight), weight)
        return (
            found["keep_mask"],
            found["pilot_mask"],
            found["sent_mask"],
            found["slot"],
            found["copy_map"],
            found["copies"],
        )


def draw(seed):
    rng = np.random.default_rng(seed)
    expert = rng.permuted(np.tile(np.arange(EXPERTS), (TOKENS, 1)), axis=1)[:, :TOP_K].astype(np.int32)
    expert[rng.uniform(size=expert.shape) < 0.1] = EXPERTS  # no assignment
    return expert, rng.choice(np.float32([0, 0.25, 0.5, 0.75]), expert.shape)  # many ties


@pytest.mark.parametrize("priority", ["position", "weight"])
def test_copies_match_a_loop(priority):
    cell = Slots(priority)
    for seed in range(3):
        expert, weight = draw(seed)
        by_expert = [NEAR if node == OWN else FAR for node in NODE]
        kept = keep_within_capacity(expert, weight, by_expert, priority)
        carried = share_copies(expert, weight, kept, NODE, OWN, COPIES, priority)
        assert carried.sum() < kept.sum()
        keep, pilot, sent, slot, copy_map, copies = (
            tensor.asnumpy() for tensor in cell(Tensor(expert), Tensor(weight))
        )
        by_token = [mask.reshape(TOP_K, TOKENS).T > 0 for mask in (keep, pilot, sent)]
        assert np.array_equal(by_token[0], carried)
        wanted = np.array([*NODE, -1])[expert]  # (T, k): nodes
        travels = {(t, int(node)) for (t, _), node in zip(np.argwhere(carried), wanted[carried]) if node != OWN}
        pilots = [(int(t), int(wanted[t, k])) for t, k in np.argwhere(by_token[1])]
        assert copies == len(pilots) and sorted(pilots) == sorted(travels)  # one copy each, no more
        assert np.array_equal(by_token[2], carried & (wanted == OWN) | by_token[1])
        check_map(copy_map, by_token[1], slot.reshape(TOP_K, TOKENS).T, expert, carried & (wanted != OWN))


def check_map(copy_map, pilot, slot, expert, leaving):
    """Every assignment that leaves has one entry, among its expert's slots: its token's copy, and its own weight."""
    near_rows = 2 * NEAR  # of the send buffer, before the copies
    token_at = {int(slot[t, k]) - near_rows: int(t) for t, k in np.argwhere(pilot)}  # by place among all copies
    assert len(token_at) == pilot.sum()
    found = set()
    for node, row in enumerate(copy_map):
        for place, entry in enumerate(row):
            if entry:
                copy, choice = divmod(int(entry) - 1, TOP_K)
                token = token_at[node * COPIES + copy]
                assert expert[token, choice] == node * 2 + place // FAR
                found.add((token, choice))
    assert (copy_map > 0).sum() == len(found) and found == {(int(t), int(k)) for t, k in np.argwhere(leaving)}


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_expanding_and_folding_match_loops(pullback, kind):
    """Whole numbers, so that sums are exact in any order. The two are each other's gradients."""
    rng = np.random.default_rng(0)
    rows, places = rng.integers(-8, 8, (5, 3)).astype(kind), rng.integers(-8, 8, (9, 3)).astype(kind)
    source, mask = rng.integers(0, 5, 9).astype(np.int32), (rng.uniform(size=(9, 1)) < 0.7).astype(np.float32)
    expanded, folded, summed = np.zeros_like(places), np.zeros_like(rows), np.zeros_like(rows)
    for place, row in enumerate(source):
        expanded[place] = rows[row] * mask[place]
        folded[row] += places[place]
        summed[row] += places[place] * kind(mask[place])
    (found,), (gradient, *_), _ = pullback(ExpandRows(), [rows, source, mask], [places])
    assert found.dtype == gradient.dtype == kind
    assert np.array_equal(found, expanded) and np.array_equal(gradient, summed)
    (found,), (gradient, *_), _ = pullback(FoldRows(5), [places, source], [rows])
    assert np.array_equal(found, folded) and np.array_equal(gradient, rows[source])
