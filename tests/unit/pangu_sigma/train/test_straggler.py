import numpy as np
import pytest

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology
from pangu_sigma.metrics.window import summarise
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.train.metrics import HostCounters, Traffic, sum_counters
from pangu_sigma.train.straggler import Stragglers, straggler_line, straggler_metrics

pytestmark = pytest.mark.compiles


def counters(step_s, communication_s=0.0, idle_s=0.0, overlapped_s=0.0):
    return HostCounters(step_s, Traffic(communication_s, idle_s, overlapped_s), Traffic(), Traffic(), Traffic())


def test_ranks_are_compared_by_their_own_computation():
    """Three ranks, of which all steps end together; the second computes longest. The first step, which compiles, does
    not count.
    """
    ranks = [Stragglers(rank, 3, 2, measured=True) for rank in range(3)]
    waiting = [(0.5, 0.4), (0.1, 0.0), (0.3, 0.5)]  # communication and idle seconds of steps of one second
    for step in (1, 2, 3):
        noted = [
            own.note(counters(60.0 if step == 1 else 1.0, *times, overlapped_s=0.1), step)
            for own, times in zip(ranks, waiting)
        ]
        assert [len(each.compute_by_rank) for each in noted] == ([3, 3, 3] if step == 2 else [0, 0, 0])
        if step == 2:
            total = np.sum([each.compute_by_rank for each in noted], 0)
    np.testing.assert_allclose(total, [0.2, 1.0, 0.3])
    assert straggler_metrics(total) == {
        "time/slowest_rank": 1,
        "time/slowest_rank/compute(s)": pytest.approx(1.0),
        "time/median_rank/compute(s)": pytest.approx(0.3),
    }


@pytest.mark.parametrize("alone", [(1, True), (4, False)])
def test_nothing_to_compare(alone):
    """One rank; a backend that does not tell waiting from computation."""
    ranks, measured = alone
    own = Stragglers(0, ranks, 1, measured)
    assert all(not len(own.note(counters(1.0), step).compute_by_rank) for step in (1, 2, 3))
    assert straggler_metrics(()) == {} and straggler_line({}, 0.1) == ""


def test_the_log_names_a_rank_beyond_the_margin():
    record = straggler_metrics(np.array([1.0, 1.3, 1.0, 1.0]))
    assert straggler_line(record, 0.2) == "rank 1 is slow: 1.300 s of its own computation a step, median rank 1.000 s"
    assert straggler_line(record, 0.4) == ""


def test_sums_keep_what_is_compared():
    """Of several steps at once, also, of which only one compares."""
    host_sum = HostSum(create_collectives("local", Topology(1, 1), 0), "test")
    compared = counters(2.0, 0.25)._replace(stops=1, compute_by_rank=np.array([0.5, 0.0]))
    plain = counters(1.0, 0.125)._replace(tensor=Traffic(inter_node_bytes=2.0**53 - 1))
    for steps in ([compared], [plain, compared], [compared, plain, plain]):
        for own, total in zip(steps, sum_counters(host_sum, steps, most=3)):
            assert total == own._replace(compute_by_rank=[0.5, 0.0] if own is compared else [])


def test_a_summary_takes_the_last_comparison():
    """Which not every step has."""
    records = [
        {"time/step(s)": float(step), **(straggler_metrics([1.0, step]) if step == 2 else {})} for step in (1, 2, 3)
    ]
    summary = summarise(records)
    assert (summary["time/step(s)"], summary["time/slowest_rank"], summary["time/slowest_rank/compute(s)"]) == (
        2.5,
        1,
        2.0,
    )
