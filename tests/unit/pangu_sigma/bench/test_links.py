"""Groups and links of a job, of which one rank is played."""

import pytest

from mindspore import nn, ops

from helpers.networks import TwinCollectives
from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import GROUP_KINDS, Topology
from pangu_sigma.bench.links import check_groups, check_links, groups_to_try, operation_in, rate_finding
from pangu_sigma.doctor.findings import FAILURE, OK, UNKNOWN, WARNING
from pangu_sigma.planner.hardware import HardwareFigure, Link

pytestmark = pytest.mark.usefixtures("pynative_mode")


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        (Topology(1, 1), []),
        (Topology(2, 2, 2), ["world"]),
        (Topology(4, 2, 4), ["world", "node", "rail"]),
        (Topology(8, 4, 2, 2), ["world", "tp", "ep", "dp", "edp", "node"]),
    ],
)
def test_each_set_of_ranks_is_tried_once(topology, expected):
    assert groups_to_try(topology) == expected
    tried = {ranks for kind in expected for ranks in topology.groups(kind)}
    assert {g for kind in GROUP_KINDS for g in topology.groups(kind) if len(g) > 1} <= tried


def test_where_hccl_has_no_all_to_all_another_exchange_is_tried():
    topology = Topology(16, 8, 2, 8)  # experts over two servers, one rank of each
    assert operation_in(topology, "ep", "910a") == "all_gather"
    assert operation_in(topology, "node", "910a") == operation_in(topology, "ep", "910b") == "all_to_all"
    assert operation_in(topology, "ep", None) == "all_to_all"


class Zeros(nn.Cell):
    def construct(self, x):
        return ops.zeros_like(x)


class Dead(TwinCollectives):
    """A backend that returns zeros without an error."""

    def _cell(self, operation, group, tag, root):
        return Zeros()


def test_a_group_that_carries_nothing_is_found():
    finding = check_groups(Dead(1, Topology(2, 2, 2)), None)
    assert finding.level == FAILURE and "1 of 1 groups: all_to_all among the ranks 0, 1 of group world" in finding.found


def test_one_rank_has_no_groups_and_no_links():
    alone = create_collectives("local", Topology(1, 1), 0)
    found = [check_groups(alone, None), *check_links(alone, None, None)]
    assert [finding.level for finding in found] == [UNKNOWN] * 3
    assert "--bench self-test" in found[0].fix


@pytest.mark.parametrize(("rate", "level"), [(30e9, OK), (13e9, OK), (12e9, WARNING), (1e6, WARNING)])
@pytest.mark.parametrize("assumption", [False, True])
def test_a_rate_below_half_of_the_file_is_told(rate, level, assumption):
    link = Link(HardwareFigure(25.0, None if assumption else "hand", assumption), HardwareFigure(10.0, "hand"))
    finding = rate_finding("network", rate, link, 1, (0, 8))
    assert finding.level == level and ("assumed" if assumption else "written") in finding.found


def test_ranks_that_share_a_link_have_a_part_of_it():
    link = Link(HardwareFigure(25.0, "hand"), HardwareFigure(10.0, "hand"))
    assert rate_finding("network", 5e9, link, 4, (0, 8)).level == OK
    assert rate_finding("network", 5e9, None, 1, (0, 8)).level == UNKNOWN
