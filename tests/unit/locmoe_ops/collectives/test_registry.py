"""The records of the collectives against the algorithms themselves, played by ranks that only note what they send."""

import numpy as np
import pytest

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.collectives.registry import COLLECTIVES, GRADIENTS, LAYERS, link_bytes, purpose_of, reduce_tiers
from locmoe_ops.collectives.tcp.mesh import Mesh
from locmoe_ops.topology import Topology

SIZES = [2, 3, 8]  # ranks
ELEMENTS = [1, 7, 700, 5001]  # numbers a rank and part; 2048 of them are what a small all-reduce may have
SENDING = [name for name, spec in COLLECTIVES.items() if spec.part_bytes is not None and name != "all_to_all_v"]


class Recorder:
    """One rank's end of a collective that sends nothing: notes bytes by receiver."""

    def __init__(self, index, size):
        self.index, self.size, self.bytes = index, size, np.zeros(size, np.int64)

    def others(self):
        return [peer for peer in range(self.size) if peer != self.index]

    def send(self, peer, array):
        self.bytes[peer] += array.nbytes

    def receive(self, peer, array):
        array[...] = 0


def play(operation, index, size, array):
    """What rank `index` sends to each, and its result."""
    recorder = Recorder(index, size)
    details = (0,) if COLLECTIVES[operation].has_root else ()
    generator = COLLECTIVES[operation].algorithm(recorder, array, *details)
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return recorder.bytes, end.value


def inputs(operation, size, elements):
    if operation == "barrier":
        return np.empty((0,), np.uint8)
    return np.ones((size, elements) if operation in ("all_to_all", "reduce_scatter") else (elements,), np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("operation", SENDING)
def test_a_collective_sends_what_its_record_says(operation, size):
    for elements in ELEMENTS:
        array = inputs(operation, size, elements)
        sent = sum(play(operation, index, size, array)[0].sum() for index in range(size))
        # Every place in the group has as many links as there are others.
        assert sent == link_bytes(operation, array.size, 4, size).sum() * (size - 1), elements


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("operation", SENDING)
def test_results_have_the_shape_that_the_record_says(operation, size):
    array = inputs(operation, size, 7)
    for index in range(size):
        shape = play(operation, index, size, array)[1].shape
        assert list(shape) == COLLECTIVES[operation].output_shape(array.shape, size)


def test_what_is_made_of_other_collectives_has_no_bytes_of_its_own():
    with pytest.raises(AssertionError, match="made of other collectives"):
        link_bytes("hierarchical_all_reduce", 5, 4, 2)


@pytest.mark.parametrize(
    "topology, group, expected",
    [
        (Topology(8, 4, 2, 2), "dp", ("dp_node", "dp_rail")),  # 0, 2 | 4, 6
        (Topology(8, 4, 2, 2), "tp", ("tp",)),  # 0, 1: inside a node
        (Topology(8, 4, 2, 2), "edp", ("edp",)),  # 0 | 4: one rank a node
        (Topology(4, 1), "dp", ("dp",)),  # every rank a node
        (Topology(1, 1), "dp", ("dp",)),
    ],
)
def test_sums_go_inside_nodes_first_where_there_are_several_ranks_on_several_nodes(topology, group, expected):
    assert reduce_tiers(topology, group, 0) == expected


@pytest.mark.parametrize("spec", COLLECTIVES.values(), ids=list(COLLECTIVES))
def test_names_are_those_of_the_methods_and_primitives(spec):
    from mindspore import ops

    assert hasattr(Mesh, spec.name) or hasattr(Mesh, f"start_{spec.name}")
    if spec.adjoint is not None:
        assert hasattr(Collectives, spec.name)
        assert COLLECTIVES[spec.adjoint].output_shape is None or COLLECTIVES[spec.adjoint].output_shape(
            spec.output_shape((8, 3), 4), 4
        ) == [8, 3]
    assert (spec.primitive is None) == (spec.adjoint is None)
    assert spec.primitive is None or hasattr(ops, spec.primitive)


@pytest.mark.parametrize(
    "group, cause, purpose",
    [
        ("dp", "gradient", GRADIENTS),
        ("edp", "gradient", GRADIENTS),
        ("dp_node", "gradient", GRADIENTS),
        ("edp_rail", "gradient", GRADIENTS),
        ("dp", "checkpoint", GRADIENTS),  # of moments; nothing else is under way
        ("dp", "layer 0", LAYERS),  # a router's statistics
        ("ep", "all_to_all", LAYERS),
        ("tp", "tensor", LAYERS),
        ("ep", "gradient", LAYERS),  # of the norm: no further communicator for one number
        ("world", "gradient", LAYERS),
        ("ep2_rail", "all_to_all", LAYERS),
    ],
)
def test_gradients_have_communicators_of_their_own(group, cause, purpose):
    assert purpose_of(group, cause) == purpose
