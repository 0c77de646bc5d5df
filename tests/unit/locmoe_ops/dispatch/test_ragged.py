import numpy as np
import pytest

from mindspore import Parameter, Tensor, nn

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.collectives.hccl import HcclCollectives
from locmoe_ops.dispatch.geometry import DispatchOptions, DispatchSetup
from locmoe_ops.dispatch.ragged import RaggedDispatcher, Regions, SortedAssignment
from locmoe_ops.errors import InputError
from locmoe_ops.topology import ExpertPlacement, Topology

pytestmark = pytest.mark.usefixtures("graph_mode")

TOKENS, HIDDEN, EXPERTS = 17, 5, 6
PLACEMENT = ExpertPlacement(EXPERTS, 3, 1)  # interleaved: positions differ from ids


class Unconnected(HcclCollectives):
    """One of several ranks, built and never run."""

    def _cell(self, *_):
        return nn.Identity()

    _uneven = _cell


def assignments(rng, top_k):
    """Distinct experts of every token; expert 1 is wanted by nobody, and E stands for no assignment."""
    wanted = rng.permuted(np.tile([0, 2, 3, 4, 5, EXPERTS], (TOKENS, 1)), axis=1)[:, :top_k]
    wanted[rng.uniform(size=TOKENS) < 0.4, 0] = 0
    doubled = (wanted[:, 1:] == 0) & (wanted[:, :1] == 0)
    wanted[:, 1:][doubled] = EXPERTS
    return wanted.astype(np.int32)


class Scaled(nn.Cell):
    def __init__(self, top_k, factor):
        super().__init__()
        collectives = create_collectives("local", Topology(1, 1), 0)
        self.dispatcher = RaggedDispatcher(
            collectives, DispatchSetup(collectives.topology, PLACEMENT, TOKENS, top_k), "t"
        )
        self.factor = Parameter(Tensor(factor), name="factor")

    def construct(self, x, expert, weight):
        y, _ = self.dispatcher.forward(x, expert, weight, weight, self.scaled)
        return y

    def scaled(self, buffers):
        return buffers * self.factor


@pytest.mark.parametrize("top_k", [1, 2])
def test_outputs_and_gradients_match_a_loop(pullback, top_k):
    rng = np.random.default_rng(top_k)
    x, dy = rng.standard_normal((2, TOKENS, HIDDEN)).astype(np.float32)
    expert = assignments(rng, top_k)
    weight = rng.uniform(size=(TOKENS, top_k)).astype(np.float32)
    factor = rng.standard_normal((EXPERTS, 1, HIDDEN)).astype(np.float32)

    y, dx, dweight, dfactor = np.zeros(x.shape), np.zeros(x.shape), np.zeros(weight.shape), np.zeros(factor.shape)
    for t, k in np.argwhere(expert < EXPERTS):
        held = PLACEMENT.position_of[expert[t, k]]
        y[t] += weight[t, k] * x[t] * factor[held, 0]
        dx[t] += weight[t, k] * dy[t] * factor[held, 0]
        dweight[t, k] = np.dot(dy[t], x[t] * factor[held, 0])
        dfactor[held, 0] += weight[t, k] * dy[t] * x[t]
    cell = Scaled(top_k, factor)
    found, gradients, of_parameters = pullback(cell, [x, expert, weight], [dy], cell.trainable_params())
    for array, expected in zip([found[0], *gradients, *of_parameters], [y, dx, dweight, dfactor]):
        np.testing.assert_allclose(
            array, expected, rtol=0, atol=5e-6
        )  # float32, sums of at most 17 products of order 1


def test_assignments_are_sorted_without_gaps():
    expert = assignments(np.random.default_rng(5), 2)
    found = {
        name: tensor.asnumpy()
        for name, tensor in SortedAssignment(TOKENS, 2, PLACEMENT.position_of)(
            Tensor(expert), Tensor(np.zeros(expert.shape, np.float32))
        ).items()
    }
    flat = expert.T.ravel()
    present = [i for i in range(len(flat)) if flat[i] < EXPERTS]
    order = sorted(present, key=lambda i: (PLACEMENT.position_of[flat[i]], i))
    assert 0 < len(order) < len(flat)
    assert found["assignment"][: len(order)].tolist() == order
    assert found["slot_mask"].ravel().tolist() == [1] * len(order) + [0] * (len(flat) - len(order))
    assert found["slot"][order].tolist() == list(range(len(order)))
    assert found["keep_mask"].ravel().tolist() == [float(e < EXPERTS) for e in flat]
    assert found["counts"].tolist() == [int((flat == e).sum()) for e in PLACEMENT.expert_at]


@pytest.mark.parametrize(
    "counts",
    [
        [[2, 0, 1], [0, 3, 1]],
        [[0, 0, 0], [0, 0, 4]],
        [[0, 0, 0], [0, 0, 0]],
        [[4, 1, 0], [4, 0, 3]],  # all places taken
    ],
)
def test_regions_match_a_loop(counts):
    room, region = 12, 8
    found = {
        name: tensor.asnumpy()
        for name, tensor in Regions(2, 3, room, region)(Tensor(np.array(counts, np.int32))).items()
    }
    row, taken, sources = 0, [0] * 3, {}
    for rank in range(2):
        for expert in range(3):
            for _ in range(counts[rank][expert]):
                sources[expert * region + taken[expert]] = row
                taken[expert] += 1
                row += 1
    assert found["keep_mask"].ravel().tolist() == [1] * row + [0] * (room - row)
    for slot in range(3 * region):
        assert found["slot_mask"][slot, 0] == (slot in sources)
        if slot in sources:
            assert found["assignment"][slot] == sources[slot] and found["slot"][sources[slot]] == slot


@pytest.mark.parametrize(
    "counts",
    [
        [[2, 0, 1], [0, 3, 1]],
        [[0, 0, 0], [0, 0, 4]],
        [[0, 0, 0], [0, 0, 0]],
        [[4, 1, 0], [4, 0, 3]],  # all places taken
        [[4, 1, 0], [4, 2, 3]],  # two rows of the last expert more than there is room for
        [[30, 1, 0], [4, 2, 3]],  # one expert of one rank fills it
    ],
)
def test_rows_of_experts_behind_each_other_match_a_loop(counts):
    """Without gaps; what does not fit is left out, and no index points outside."""
    room = 12
    found = {
        name: tensor.asnumpy() for name, tensor in Regions(2, 3, room, None)(Tensor(np.array(counts, np.int32))).items()
    }
    arrived = [expert for rank in range(2) for expert in range(3) for _ in range(counts[rank][expert])][:room]
    order = sorted(range(len(arrived)), key=lambda row: (arrived[row], row))
    assert found["sizes"].tolist() == [arrived.count(expert) for expert in range(3)]
    assert found["keep_mask"].ravel().tolist() == found["slot_mask"].ravel().tolist()
    assert found["keep_mask"].ravel().tolist() == [1] * len(arrived) + [0] * (room - len(arrived))
    assert found["assignment"][: len(arrived)].tolist() == order
    assert [found["slot"][row] for row in order] == list(range(len(arrived)))
    expected = np.zeros((room, 3))
    expected[np.arange(len(arrived)), sorted(arrived)] = 1
    np.testing.assert_array_equal(found["member"], expected)


@pytest.mark.parametrize("sent, too_many", [([[1, 2], [3, 4]], 0), ([[26, 0], [0, 1]], 0), ([[26, 0], [2, 3]], 2)])
def test_rows_beyond_the_limit_are_counted(sent, too_many):
    """Those that come to the first of two ranks, of 17 tokens with room for 26; each has one expert."""

    class Told(Unconnected):
        def _cell(self, *_):
            return lambda counts: Tensor(np.array(sent, np.int32).reshape(2, 2, 1))

    topology, options = Topology(2, 2, 2), DispatchOptions(ragged_limit=1.5)
    setup = DispatchSetup(topology, ExpertPlacement(2, 1, 2), TOKENS, 1, options=options)
    dispatcher = RaggedDispatcher(Told(0, topology), setup, "t")
    context = dispatcher.announced({"counts": Tensor(np.array(sent[0], np.int32))})
    assert dispatcher.limits_rows and float(context["beyond_limit"].asnumpy()) == too_many


@pytest.mark.parametrize(
    "limit, top_k, rows, region",
    [
        (None, 1, 4 * 17, 4 * 17),  # all tokens of all ranks
        (None, 3, 4 * 17 * 2, 4 * 17),  # a rank has two experts, so a third choice goes elsewhere
        (1.5, 1, 26, 26),  # 25.5 rows
        (100.0, 1, 4 * 17, 4 * 17),
    ],
)
def test_room_for_arrivals(limit, top_k, rows, region):
    topology, options = Topology(4, 4, 4), DispatchOptions(ragged_limit=limit)
    setup = DispatchSetup(topology, ExpertPlacement(8, 1, 4), 17, top_k, options=options)
    dispatcher = RaggedDispatcher(Unconnected(0, topology), setup, "t")
    assert dispatcher.regions.index.shape == (rows,) and dispatcher.capacity == region


def test_a_limit_below_an_even_load_is_refused():
    topology = Topology(1, 1)
    setup = DispatchSetup(topology, PLACEMENT, TOKENS, 1, options=DispatchOptions(ragged_limit=0.5))
    with pytest.raises(InputError, match="moe.dispatch.ragged_limit is 0.5, expected at least 1"):
        RaggedDispatcher(create_collectives("local", topology, 0), setup, "t")
