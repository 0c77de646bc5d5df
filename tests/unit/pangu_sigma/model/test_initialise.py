import math
import zlib

import numpy as np
import pytest

from locmoe_ops.experts import ExpertBank
from locmoe_ops.tensor_parallel import own_part, slice_of, whole_shape
from locmoe_ops.topology import Topology
from pangu_sigma.model.initialise import initialise

STD = 0.05
ROUTER = {"router": {"type": "switch"}, "num_experts": 8}


def values(networks, rank=0, ranks=1, seed=1, **model):
    config = networks.small_config({"hidden_size": 64, "ffn_hidden_size": 96, **model}, ROUTER)
    collectives = networks.TwinCollectives(rank, Topology(ranks, ranks, expert=ranks))
    network = networks.build_network(config, collectives=collectives)
    initialise(network, seed, STD)
    return networks.parameter_arrays(network)


@pytest.fixture(scope="module")
def alone(networks):
    return values(networks)


def test_standard_deviations_are_as_stated(alone):
    residual = STD / math.sqrt(2 * 3)  # a dense block, a sparse one and the query layer
    for name, drawn in alone.items():
        last = name.rsplit(".", 1)[-1]
        if last in ("bias", "beta", "b_in", "b_out"):
            assert (drawn == 0.0).all(), name
        elif last == "gamma":
            assert (drawn == 1.0).all(), name
        else:
            std = residual if "project" in name or "w_out" in name else STD
            # The standard error of a standard deviation is std / sqrt(2 n), that of a mean std / sqrt(n).
            assert abs(drawn.std() / std - 1.0) < 4.0 / math.sqrt(2 * drawn.size), name
            assert abs(drawn.mean()) < 4.0 * std / math.sqrt(drawn.size), name
            assert drawn.dtype == np.float32


def test_no_two_parameters_share_their_numbers(alone):
    random = [drawn.reshape(-1)[:32] for drawn in alone.values() if drawn.std() > 0.0]
    experts = [expert.reshape(-1)[:32] for name, drawn in alone.items() if "experts.w" in name for expert in drawn]
    directions = [drawn / drawn.std() for drawn in random + experts]
    distinct = {direction.round(4).tobytes() for direction in directions}
    assert len(distinct) == len(directions) - 2  # the first experts of w_in and w_out are in both lists


@pytest.mark.parametrize("ranks", [2, 4])
def test_values_do_not_depend_on_the_rank_that_holds_them(networks, alone, ranks):
    held = [values(networks, rank, ranks) for rank in range(ranks)]
    for name, whole in alone.items():
        if ".experts." in name:
            # Interleaved over two groups, in buffer order: rank after rank, this is the order of the one rank.
            np.testing.assert_array_equal(np.concatenate([part[name] for part in held]), whole, name)
        else:
            for part in held:
                np.testing.assert_array_equal(part[name], whole, name)


def test_the_seed_decides(networks, alone):
    again, other = values(networks), values(networks, seed=2)
    for name, drawn in alone.items():
        np.testing.assert_array_equal(again[name], drawn, name)
        assert drawn.std() == 0.0 or not np.array_equal(other[name], drawn), name


def test_deeper_networks_start_with_smaller_residual_maps(networks):
    deep = values(networks, dense_layers=7)
    found = deep["blocks.0.attention.project.weight"].std()
    assert found == pytest.approx(STD / math.sqrt(2 * 9), rel=0.05)  # 4 standard errors of 64 x 64 numbers


def test_experts_of_a_group_can_begin_as_copies(networks):
    config = networks.small_config({"hidden_size": 64, "ffn_hidden_size": 96}, {**ROUTER, "num_groups": 2})
    network = networks.build_network(config)
    initialise(network, 1, STD, experts_alike=4)
    for name, drawn in networks.parameter_arrays(network).items():
        if ".experts.w_" in name:
            held = drawn[np.argsort(network.blocks[-1].feed_forward.experts.local_experts)]  # by global id
            np.testing.assert_array_equal(held[:4], np.repeat(held[:1], 4, 0), name)
            np.testing.assert_array_equal(held[4:], np.repeat(held[4:5], 4, 0), name)
            assert not np.array_equal(held[0], held[4]), name


def test_tensor_parallel_ranks_hold_parts_of_the_same_weights(networks):
    """Parts of heads, inner features and words of both slots, put together, are what one rank alone draws; the rest is
    held by all.
    """
    config = networks.small_config({"hidden_size": 64, "ffn_hidden_size": 96, "domain_embeddings": True}, ROUTER)
    whole, *ranks = (
        networks.build_network(config, collectives=networks.TwinCollectives(rank, topology), words=30)
        for rank, topology in ((0, Topology(1, 1)), (0, Topology(2, 2, 1, 2)), (1, Topology(2, 2, 1, 2)))
    )
    for network in (whole, *ranks):
        initialise(network, 1, STD)
    for drawn, first, second in zip(*(network.get_parameters() for network in (whole, *ranks))):
        assert drawn.name == first.name
        # The axis along which two halves make a whole, worked out from the shapes and not from what the parameters say.
        axes = [axis for axis, size in enumerate(drawn.shape) if first.shape[axis] != size]
        assert (slice_of(first) is not None) == bool(axes)
        first, second = first.asnumpy(), second.asnumpy()
        if drawn.name.endswith("word"):
            np.testing.assert_array_equal(
                np.concatenate((first[:15], second[:15], first[15:], second[15:])), drawn.asnumpy()
            )
        elif axes:
            np.testing.assert_array_equal(np.concatenate((first, second), axes[0]), drawn.asnumpy(), err_msg=drawn.name)
        else:
            np.testing.assert_array_equal(first, drawn.asnumpy(), err_msg=drawn.name)
    split = {
        p.name.split(".", 2)[-1] for p in ranks[0].get_parameters() if slice_of(p) is not None and "blocks.1" in p.name
    }
    assert split == {
        "attention.query.weight",
        "attention.query.bias",
        "attention.key.weight",
        "attention.value.weight",
        "attention.value.bias",
        "attention.project.weight",
        "feed_forward.experts.w_in",
        "feed_forward.experts.b_in",
        "feed_forward.experts.w_out",
    }


def drawn_whole(network, seed, alike):
    """Each parameter's numbers as they were drawn at first: the whole in one call, then cut. By name."""
    residual = STD / math.sqrt(2.0 * (len(network.blocks) + 1))
    values = {}

    def draw(parameter, stream, std):
        numbers = np.random.default_rng(stream).standard_normal(whole_shape(parameter), dtype=np.float32) * std
        values[parameter.name] = own_part(parameter, numbers.astype(np.float32))

    for name, cell in network.cells_and_names():
        stream = zlib.crc32(f"{seed}/{name}".encode())
        if isinstance(cell, ExpertBank):
            for parameter, std, number in ((cell.w_in, STD, 0), (cell.w_out, residual, 1)):
                experts = []
                for expert in cell.local_experts:
                    generator = np.random.default_rng(np.random.SeedSequence((stream, number, expert // alike)))
                    numbers = generator.standard_normal(whole_shape(parameter)[1:], dtype=np.float32) * std
                    experts.append(numbers.astype(np.float32))
                values[parameter.name] = own_part(parameter, np.stack(experts))
            continue
        last = name.rsplit(".", 1)[-1]
        for parameter in cell.get_parameters(expand=False):
            part = parameter.name.rsplit(".", 1)[-1]
            if part in ("weight", "word", "top_query"):
                draw(parameter, stream, residual if last in ("project", "w_out") else STD)
            elif part == "position":
                draw(parameter, stream + 1, STD)
    return values


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("ranks", "expert", "tensor"), [(1, 1, 1), (2, 2, 1), (4, 4, 1), (2, 1, 2), (4, 1, 4), (4, 2, 2), (8, 4, 2)]
)
def test_every_rank_draws_the_numbers_that_it_always_drew(networks, ranks, expert, tensor, threads):
    """Parameters of every kind at any degree, to the bit."""
    model = {"hidden_size": 64, "num_heads": 4, "ffn_hidden_size": 96, "domain_embeddings": True}
    config = networks.small_config(model, ROUTER)
    for rank in range(ranks):
        collectives = networks.TwinCollectives(rank, Topology(ranks, ranks, expert, tensor))
        network = networks.build_network(config, collectives=collectives, words=32)
        initialise(network, 3, STD, experts_alike=2, threads=threads)
        expected, found = drawn_whole(network, 3, 2), networks.parameter_arrays(network)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert {name for name, value in found.items() if value.std() > 0.0} == set(expected)
