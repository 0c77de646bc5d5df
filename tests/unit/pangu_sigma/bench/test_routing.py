"""Which experts the tokens of `bench all-to-all` want."""

import numpy as np
import pytest

from helpers.traces import made_up_trace
from locmoe_ops.errors import InputError
from locmoe_ops.routing_trace import to_bytes
from pangu_sigma.bench.routing import (
    BalancedRouting,
    SkewedRouting,
    TokensOfRank,
    TracedRouting,
    busiest_over_mean,
    routing_of,
)


def drawn(routing, *of, seed=1):
    return routing.choices(TokensOfRank(*of), np.random.default_rng(seed))


@pytest.mark.parametrize(("tokens", "top_k", "experts"), [(64, 1, 8), (64, 2, 8), (65, 3, 4), (8, 2, 640), (64, 4, 4)])
def test_balanced(tokens, top_k, experts):
    """Distinct in each token, and as even as whole numbers allow."""
    found = drawn(BalancedRouting(), tokens, top_k, experts)
    assert found.shape == (tokens, top_k) and found.min() >= 0 and found.max() < experts
    assert all(len(set(row)) == top_k for row in found.tolist())
    counts = np.bincount(found.reshape(-1), minlength=experts)
    assert counts.max() <= -(-tokens // experts) * top_k and counts.max() - counts.min() <= top_k


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_skewed_shares_are_zipfs(exponent):
    """20,000 draws; a share of p has a deviation of sqrt(p (1 - p) / 20,000), 0.0036 at most: five of them."""
    found = drawn(SkewedRouting(exponent), 20_000, 1, 8)
    shares = np.sort(np.bincount(found[:, 0], minlength=8) / 20_000)[::-1]
    law = np.arange(1, 9) ** -exponent
    np.testing.assert_allclose(shares, law / law.sum(), atol=0.018)


def test_skewed_choices_of_a_token_are_different_and_hot_for_all_ranks():
    found = [drawn(SkewedRouting(1.5), 500, 3, 8, rank, 4, seed=rank) for rank in range(4)]
    assert all(len(set(row)) == 3 for row in found[0].tolist())
    hottest = {int(np.bincount(one.reshape(-1)).argmax()) for one in found}
    assert len(hottest) == 1 and (found[0] != found[1]).any()


@pytest.fixture
def traced(tmp_path):
    """A trace of 4 rows of 6 tokens, two experts a token; row i is at home on rank i."""
    (tmp_path / "a.safetensors").write_bytes(to_bytes(made_up_trace()))
    return str(tmp_path / "a.safetensors")


def test_a_trace_gives_each_rank_its_own_tokens(traced):
    trace = made_up_trace()
    for layer in (0, 1):
        for rank in range(4):
            found = drawn(TracedRouting(traced, layer), 6, 2, 8, rank, 4)
            np.testing.assert_array_equal(found, trace.expert[layer, rank])
    of_two = drawn(TracedRouting(traced), 12, 2, 8, 1, 2)  # ranks of a job of two: rows 2 and 3
    np.testing.assert_array_equal(of_two, trace.expert[0, 2:].reshape(-1, 2))


def test_a_trace_that_is_too_short_begins_anew(traced):
    found = drawn(TracedRouting(traced), 15, 2, 8, 0, 4)
    own = made_up_trace().expert[0, 0]
    np.testing.assert_array_equal(found, np.concatenate((own, own, own[:3])))
    assert drawn(TracedRouting(traced), 5, 2, 8, 99, 100).shape == (5, 2)  # more ranks than tokens


@pytest.mark.parametrize(
    ("of", "layer", "problem"),
    [
        ((6, 2, 4), None, "written with moe.num_experts 8; expected 4"),
        ((6, 1, 8), None, "written with moe.router.top_k 2; expected 1"),
        ((6, 2, 8), 2, "--layer 2: --routing trace:.* has 2 sparse layers, from 0 on"),
    ],
)
def test_a_trace_of_other_experts(traced, of, layer, problem):
    with pytest.raises(InputError, match=problem):
        drawn(routing_of(f"trace:{traced}", layer), *of)


@pytest.mark.parametrize(
    "text", ["", "skewed", "skewed:", "skewed:x", "skewed:-1", "skewed:nan", "balanced:1", "trace:", "trace", "even"]
)
def test_what_is_no_routing(text):
    with pytest.raises(InputError, match=f"--routing: found '{text}', expected balanced, skewed:S .* or trace:FILE"):
        routing_of(text)


def test_what_is_a_routing(traced):
    assert routing_of("balanced") == BalancedRouting() and routing_of("skewed:0.5") == SkewedRouting(0.5)
    assert routing_of("trace:a:b", 1) == TracedRouting("a:b", 1)
    with pytest.raises(InputError, match="--layer is a layer of a trace, with --routing skewed:1"):
        routing_of("skewed:1", 0)
    with pytest.raises(InputError, match="cannot be read"):
        drawn(routing_of("trace:absent"), 6, 2, 8)


def test_the_busiest_expert_of_all_ranks(traced):
    load = np.bincount(made_up_trace().expert[0].reshape(-1), minlength=8)
    assert busiest_over_mean(TracedRouting(traced), TokensOfRank(6, 2, 8, 0, 4)) == load.max() / load.mean()
    assert busiest_over_mean(BalancedRouting(), TokensOfRank(64, 1, 8, 0, 4)) == 1.0
