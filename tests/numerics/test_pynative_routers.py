"""Layers with rarer routers against the NumPy reference: outputs, losses, counts and gradients, in PyNative mode, which
compiles nothing. The process holds the tokens of four ranks.
"""

import numpy as np
import pytest
from compiled_router import CompiledRouter
from layer_cases import AMPLE, DRAWS, PYNATIVE_CASES, RANKS, TOKENS, batch_of, on_one_rank, parameters_of
from test_moe_layer import assert_equal, from_reference, joined

import mindspore as ms

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.reference.layer import moe_layer
from locmoe_ops.topology import Topology


@pytest.fixture(scope="module")
def layers():
    """Layers by name, each built once."""
    before, built = ms.get_context("mode"), {}
    ms.set_context(mode=ms.PYNATIVE_MODE)

    def layer(name):
        if name not in built:
            collectives = create_collectives("local", Topology(1, 1), 0)
            built[name] = CompiledRouter(PYNATIVE_CASES[name], collectives, RANKS * TOKENS)
        return built[name]

    yield layer
    ms.set_context(mode=before)


def draws_of(case):
    """Where all experts are chosen, the loss of the last draw has no gradient, and rounding is all there is."""
    return DRAWS if case.top_k < case.experts // case.groups or case.router == "etr" else DRAWS[:-1]


EVERYTHING = [(name, draw) for name, case in PYNATIVE_CASES.items() for draw in draws_of(case)]


@pytest.mark.parametrize("name, draw", EVERYTHING)
def test_layer_matches_the_reference(layers, name, draw):
    case = PYNATIVE_CASES[name]
    tokens, gradients = on_one_rank(*batch_of(case, draw))
    found = joined(case, [layers(name).run(tokens[0], gradients[0])], 1)
    assert_equal(found, from_reference(case, tokens, gradients))


@pytest.mark.parametrize("name", PYNATIVE_CASES)
def test_cases_hold_what_they_are_for(name):
    """What tells each rule apart happens to some tokens; some find no slot; some experts have no token."""
    case, parameters = PYNATIVE_CASES[name], parameters_of(PYNATIVE_CASES[name])
    ranks, _ = on_one_rank(*batch_of(case, "scattered"))
    result = moe_layer(case.spec, parameters, ranks)
    if case.expert_choice and case.top_k < case.experts:
        assert 0.05 < (result.expert[0] == case.experts).mean() < 0.5  # absent choices
    if case.library_cap and case.max_remote_fraction < 1.0:
        local = np.array(
            [
                [case.spec.is_local(case.layout.node_of(home), expert) for expert in row]
                for home, row in zip(ranks[0].home, result.expert[0])
            ]
        )
        for home in range(RANKS):
            leaving = ~local[ranks[0].home == home].all(1)
            assert leaving.sum() == int(0.3 * TOKENS) and local[ranks[0].home == home][:, 0].all()
    if case.router == "smile" and case.num_nodes > 1:
        inside = case.experts // case.groups // case.num_nodes
        assert (np.ptp(result.expert[0] // inside, axis=1) == 0).all()
    if case.capacity < AMPLE:
        assert result.stats.drop_fraction > 0.05
    crowded = moe_layer(case.spec, parameters, on_one_rank(*batch_of(case, "crowded"))[0])
    if case.groups > 1:
        assert (crowded.stats.tokens_per_expert == 0).sum() >= case.experts - case.experts // case.groups
