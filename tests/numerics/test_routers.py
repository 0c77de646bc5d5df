"""Layers with each further router, and with a local term, against the NumPy reference; in one process.

The process holds the tokens of four ranks. Where nothing is dropped, the reference also takes them rank by rank:
choices and losses do not depend on how ranks share the tokens out.
"""

from dataclasses import replace

import numpy as np
import pytest
from compiled_layer import NOISE_SCALE
from compiled_router import CompiledRouter
from layer_cases import AMPLE, DRAWS, RANKS, ROUTER_CASES, TOKENS, batch_of, on_one_rank, parameters_of
from test_moe_layer import assert_equal, from_reference, joined

import mindspore as ms
from mindspore import Tensor

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.random import SeededUniform
from locmoe_ops.reference.layer import moe_layer
from locmoe_ops.routers.selection_bias import set_locality_strength
from locmoe_ops.topology import Topology

EVERYTHING = [(name, draw) for name in ROUTER_CASES for draw in DRAWS]
SEEDS = (
    np.random.default_rng(11).integers(0, 2**31 - 1, RANKS * TOKENS).astype(np.int32)
)  # of the tokens where a router adds noise
RNG_STREAM = 5  # of the first layer
WITH_TERM = [name for name, case in ROUTER_CASES.items() if case.local_term != "none"]


@pytest.fixture(scope="module")
def chance():
    """The number that the compiled layer, fed with seeds of 0, decides by on second choices."""
    return float(SeededUniform(1, RNG_STREAM)(Tensor(np.zeros(1, np.int32))).asnumpy()[0, 0])


@pytest.fixture(scope="module")
def layers():
    """Compiled layers by name; a case is compiled once."""
    before, compiled = ms.get_context("mode"), {}
    ms.set_context(mode=ms.GRAPH_MODE)

    def layer(name):
        if name not in compiled:
            compiled[name] = CompiledRouter(
                ROUTER_CASES[name], create_collectives("local", Topology(1, 1), 0), RANKS * TOKENS
            )
        return compiled[name]

    yield layer
    ms.set_context(mode=before)


@pytest.fixture
def batch(chance):
    def make(case, draw):
        ranks, gradients = batch_of(case, draw)
        ranks = [replace(tokens, chance=np.full(TOKENS, chance)) for tokens in ranks]
        if case.noisy:
            noise = NOISE_SCALE * (2.0 * uniform(SEEDS, case.experts // case.groups) - 1.0)
            ranks = [replace(tokens, noise=own) for tokens, own in zip(ranks, np.split(noise, RANKS))]
        return ranks, gradients

    return make


def uniform(seeds, length):
    """float64 (T, length) in [0, 1): the mixer of `locmoe_ops.random` on unbounded integers, for the stream
    RNG_STREAM.
    """

    def mixed(bits, arithmetic=False):
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            high = (bits - 2**32 if arithmetic and bits >= 2**31 else bits) >> shift
            bits = ((bits ^ high) * factor) % 2**32
        return bits

    position = [mixed(mixed(i) ^ mixed(RNG_STREAM)) for i in range(length)]
    return (
        np.array(
            [[mixed((offset + int(seed)) % 2**32, arithmetic=True) % 2**24 for offset in position] for seed in seeds]
        )
        / 2.0**24
    )


def run(layer, case, batch):
    tokens, gradients = on_one_rank(*batch)
    return joined(case, [layer.run(tokens[0], gradients[0], SEEDS if case.noisy else None)], 1)


@pytest.mark.parametrize("name, draw", EVERYTHING)
def test_layer_matches_the_reference(layers, batch, name, draw):
    case = ROUTER_CASES[name]
    given = batch(case, draw)
    found = run(layers(name), case, given)
    assert_equal(found, from_reference(case, *on_one_rank(*given)))
    # A cap on what leaves a home counts the home's tokens of one call: apart, they are all there if homes are ranks.
    if case.capacity == AMPLE and (case.router != "faster_moe" or draw == "scattered"):
        assert_equal(found, from_reference(case, *given))


@pytest.mark.parametrize("name", WITH_TERM)
@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_another_strength_needs_no_other_graph(layers, batch, name, strength):
    case, layer = ROUTER_CASES[name], layers(name)
    given = batch(case, "scattered")
    run(layer, case, given)
    graphs = len(layer.step.compile_cache)
    set_locality_strength(layer.layer, strength)
    found = run(layer, case, given)
    set_locality_strength(layer.layer, case.local_strength)
    assert_equal(found, from_reference(replace(case, local_strength=strength), *on_one_rank(*given)))
    assert len(layer.step.compile_cache) == graphs == 1
    if strength == 0.0:
        off = from_reference(replace(case, local_term="none"), *on_one_rank(*given))
        assert_equal(found, off)


@pytest.mark.parametrize("name", ROUTER_CASES)
def test_cases_hold_what_they_are_for(batch, name):
    """What tells each router apart happens to some tokens, and not to all."""
    case = ROUTER_CASES[name]
    ranks, _ = on_one_rank(*batch(case, "scattered"))
    parameters = parameters_of(case)
    result = moe_layer(case.spec, parameters, ranks)
    if case.router == "gshard":
        taken = (result.expert[0][:, 1] < case.experts).mean()
        assert 0.05 < taken < 0.95
    if case.router in ("faster_moe",) or case.local_term != "none":
        free = moe_layer(
            replace(case, router="switch" if case.router == "faster_moe" else case.router, local_term="none").spec,
            parameters,
            ranks,
        )
        moved = (result.expert[0] != free.expert[0]).any(1).mean()
        assert 0.1 < moved < 0.9
    if case.ties != "first":
        noiseless = [replace(tokens, noise=None) for tokens in ranks]
        plain = moe_layer(replace(case, ties="first").spec, parameters, noiseless)
        moved = (result.expert[0] != plain.expert[0]).any(1).mean()
        assert 0.02 < moved < 0.9 and 0.02 < plain.stats.undecided_fraction < 0.9
    if case.centred:
        plain = moe_layer(case.spec, replace(parameters, value_mean=None), ranks)
        assert 0.1 < (result.expert[0] != plain.expert[0]).any(1).mean() < 0.9
    changed = {"normalise": "none", "value_scale": 1.0, "rectify": True}
    for field in (name for name, plain in changed.items() if getattr(case, name) != plain):
        plain = moe_layer(replace(case, **{field: changed[field]}).spec, parameters, ranks)
        assert (np.abs(result.weight[0] - plain.weight[0]).max(1) > 0.01).mean() > 0.1, field
    if case.capacity < AMPLE:
        assert result.stats.drop_fraction > 0.05
