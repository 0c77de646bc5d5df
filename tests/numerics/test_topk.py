"""Layers with `topk`, `node_limited` and `moge`, by each of their keys, and losses over expert-parallel groups, against
the NumPy reference; uncompiled, in one process that holds the tokens of four ranks. Compiled, and on four ranks, the
three routers stand in `layer_cases.CASES`.
"""

from dataclasses import replace

import numpy as np
import pytest
from compiled_router import CompiledRouter
from layer_cases import AMPLE, RANKS, STATISTICS_CASES, TOKENS, TOPK_CASES, batch_of, on_one_rank, parameters_of
from test_moe_layer import assert_equal, from_reference, joined

import mindspore as ms

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.reference.layer import moe_layer
from locmoe_ops.topology import Topology


@pytest.fixture(autouse=True)
def pynative():
    before = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=before)


@pytest.mark.parametrize("name", {**TOPK_CASES, **STATISTICS_CASES})
def test_layer_matches_the_reference(name):
    case = {**TOPK_CASES, **STATISTICS_CASES}[name]
    layer = CompiledRouter(case, create_collectives("local", Topology(1, 1), 0), RANKS * TOKENS)
    for draw in ("scattered", "crowded"):
        given = batch_of(case, draw)
        tokens, gradients = on_one_rank(*given)
        found = joined(case, [layer.run(tokens[0], gradients[0])], 1)
        assert_equal(found, from_reference(case, tokens, gradients))
        if case.capacity == AMPLE:  # what ranks share out makes no difference
            assert_equal(found, from_reference(case, *given))


@pytest.mark.parametrize("name", TOPK_CASES)
def test_cases_hold_what_they_are_for(name):
    """What tells each case apart happens to some tokens, and not to all; and some expert has no token."""
    case, parameters = TOPK_CASES[name], parameters_of(TOPK_CASES[name])
    tokens, _ = on_one_rank(*batch_of(case, "scattered"))
    result = moe_layer(case.spec, parameters, tokens)
    assert (result.stats.drop_fraction > 0.05) == (case.capacity < AMPLE)
    crowded = moe_layer(case.spec, parameters, on_one_rank(*batch_of(case, "crowded"))[0])
    if case.groups == 3 or case.num_experts == 64 and case.top_k == 1:
        assert (crowded.stats.tokens_per_expert == 0).any()
    if case.tied:  # of experts 0 and 1, 2 and 3, ... which have equal scores, some tokens take one: the lower
        alone = [expert for row in result.expert[0] for expert in row if expert + 1 - 2 * (expert % 2) not in row]
        assert alone and all(expert % 2 == 0 for expert in alone)
    if case.balanced or case.local_term != "none":
        plain = replace(case, balanced=False, local_term="none")
        free = moe_layer(plain.spec, parameters_of(plain), tokens)
        assert 0.1 < (result.expert[0] != free.expert[0]).any(1).mean() <= 1.0
    if case.router != "topk" and case.top_k > 1:
        free = moe_layer(replace(case, router="topk").spec, parameters, tokens)
        assert 0.1 < (np.sort(result.expert[0]) != np.sort(free.expert[0])).any(1).mean() <= 1.0
