"""A group that does not carry what is sent is found before anything is trained. Two ranks of which one is played."""

import pytest

import mindspore as ms
from mindspore import nn, ops

from helpers.networks import TwinCollectives
from locmoe_ops.collectives.rank_numbers import check_rank_numbers, numbers_fault
from locmoe_ops.errors import CollectiveError
from locmoe_ops.topology import Topology

pytestmark = pytest.mark.usefixtures("pynative_mode")


class Played(nn.Cell):
    """What rank 0 of two gets, where a backend works (rank 1 sends 2 and 3, or 2), returns zeros, or nothing new."""

    def __init__(self, operation, how):
        super().__init__()
        self.operation, self.how = operation, how

    def construct(self, x):
        if self.how == "zeros":
            return ops.zeros((2, 1), ms.int32)
        if self.how == "input":
            return x if self.operation == "all_to_all" else ops.concat((x, x))
        return ops.concat((x[:1], x[:1] * 0 + 2))


class PlayedCollectives(TwinCollectives):
    def __init__(self, how):
        super().__init__(0, Topology(2, 2, 2))
        self.how = how

    def _cell(self, operation, group, tag, root):
        return Played(operation, self.how)


@pytest.mark.parametrize("operation", ["all_to_all", "all_gather", "all_reduce", "reduce_scatter"])
@pytest.mark.parametrize("how", ["works", "zeros", "input"])
def test_every_group_is_tried(operation, how):
    collectives = PlayedCollectives(how)
    getattr(collectives, operation)("ep", "layer")
    if how == "works":
        return check_rank_numbers(collectives)
    tried = "all_to_all" if operation == "all_to_all" else "all_gather"
    found = "[0, 0]" if how == "zeros" or tried == "all_gather" else "[0, 1]"
    with pytest.raises(CollectiveError) as caught:
        check_rank_numbers(collectives)
    assert str(caught.value) == (
        f"rank 0: {tried} among the ranks 0, 1 of group ep does not work: received {found} where [0, 2] were sent; "
        "nothing can be trained over it"
    )


def test_every_communicator_is_tried(monkeypatch):
    """Gradients and layers on the same ranks: the trial of each bears a tag that leads to it."""
    collectives, tags = PlayedCollectives("works"), []
    collectives.all_reduce("dp", "gradient/dense/0")
    collectives.all_reduce("dp", "layer 0/statistics")
    collectives.all_reduce("dp", "gradient/dense/1")
    monkeypatch.setattr(
        PlayedCollectives,
        "_cell",
        lambda self, operation, group, tag, root: tags.append(tag) or Played(operation, "works"),
    )
    check_rank_numbers(collectives)
    assert tags == ["gradient/start/all_gather dp", "start/all_gather dp"]


def test_groups_that_nobody_uses_are_left_alone():
    collectives = PlayedCollectives("zeros")
    collectives.all_to_all("tp", "alone")  # a group of one rank
    check_rank_numbers(collectives)
    assert numbers_fault([0, 4], [0, 4]) == ""
