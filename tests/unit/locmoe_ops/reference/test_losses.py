import numpy as np
import pytest
from scipy import stats

from locmoe_ops.reference.losses import (
    aux_loss,
    aux_loss_gradient,
    divergence_loss,
    divergence_loss_gradient,
    localised_distribution,
    locality_loss,
    locality_loss_gradient,
)
from locmoe_ops.reference.routing import route
from locmoe_ops.reference.spec import RankTokens

LOSSES = {
    "aux": (aux_loss, aux_loss_gradient),
    "locality": (locality_loss, locality_loss_gradient),
    "divergence": (divergence_loss, divergence_loss_gradient),
}


def routed(case):
    return case.spec, case.ranks, [route(case.spec, case.parameters, tokens) for tokens in case.ranks]


def joined(ranks):
    return RankTokens(
        *(np.concatenate([getattr(tokens, name) for tokens in ranks]) for name in ("x", "token_ids", "domain", "home"))
    )


def test_even_routing_costs_alpha(make_case):
    # Four tokens, four experts, each token sure of its own: f = P = 1/4, so n * sum f P = 1.
    case = make_case(router="switch", ranks=1, tokens=4, groups=1, hidden=4, alpha=0.3)
    case.parameters.gate[:] = np.eye(4)
    case.ranks[0].x[:] = 100.0 * np.eye(4)
    assert aux_loss(*routed(case)) == pytest.approx(0.3, rel=1e-12)


def test_collapsed_routing_costs_alpha_times_n(make_case):
    case = make_case(router="switch", experts=4, groups=1, hidden=2, alpha=0.3)
    case.parameters.gate[:] = [[1, 0], [0, 0], [0, 0], [0, 0]]
    for tokens in case.ranks:
        tokens.x[:] = [100.0, 0.0]
    assert aux_loss(*routed(case)) == pytest.approx(4 * 0.3, rel=1e-12)


@pytest.mark.parametrize("scope", ["rank", "node", "global"])
@pytest.mark.parametrize("options", [{"router": "switch"}, {"router": "locmoe", "gate": "dense"}, {"router": "locmoe"}])
@pytest.mark.parametrize("top_k", [1, 3])
def test_aux_loss_matches_masked_means(make_case, scope, options, top_k):
    case = make_case(tokens=9, ranks=3, experts=8, statistics=scope, top_k=top_k, **options)
    spec, ranks, routings = routed(case)
    domain, home = np.concatenate([t.domain for t in ranks]), np.concatenate([t.home for t in ranks])
    probability = np.concatenate([r.probability for r in routings])
    expert = np.concatenate([r.expert for r in routings])
    segment = {"rank": home, "node": home // 2, "global": 0 * home}[scope]
    expected = 0.0
    for s in np.unique(segment):
        for g in range(2):
            mask = (segment == s) & (domain == g)
            if mask.any():
                chosen = np.bincount(expert[mask].ravel(), minlength=8)[4 * g : 4 * g + 4] / (top_k * mask.sum())
                expected += mask.mean() * 4 * (chosen * probability[mask].mean(axis=0)).sum()
    assert aux_loss(spec, ranks, routings) == pytest.approx(spec.alpha * expected, rel=1e-12)


@pytest.mark.parametrize("scope", ["rank", "node", "global"])
def test_losses_do_not_depend_on_how_many_ranks_hold_the_tokens(make_case, scope):
    case = make_case(ranks=4, statistics=scope, mu=0.7)
    together = case._replace(ranks=[joined(case.ranks)])
    for loss, _ in LOSSES.values():
        # Equal but for the order of summation.
        assert loss(*routed(together)) == pytest.approx(loss(*routed(case)), rel=1e-12)


def test_per_rank_loss_is_the_mean_of_the_ranks_own_losses(make_case):
    case = make_case(ranks=4, router="switch", statistics="rank")
    for index, tokens in enumerate(case.ranks):
        tokens.home[:] = index
    own = [aux_loss(*routed(case._replace(ranks=[tokens]).with_spec(statistics="global"))) for tokens in case.ranks]
    assert aux_loss(*routed(case)) == pytest.approx(np.mean(own), rel=1e-12)


def test_hash_has_no_losses_and_switch_no_locality_loss(make_case):
    assert aux_loss(*routed(make_case(router="hash"))) == 0.0
    assert locality_loss(*routed(make_case(router="hash"))) == 0.0
    assert locality_loss(*routed(make_case(router="switch"))) == 0.0


def test_localised_distribution(make_case):
    # Interleaved: each node of two holds two of a group's four experts. Grouped: all of one group's or none.
    spread = make_case(experts=8, smoothing=0.2).spec
    np.testing.assert_allclose(localised_distribution(spread, 0, 1), [0.45, 0.45, 0.05, 0.05], rtol=1e-12)
    np.testing.assert_allclose(localised_distribution(spread, 1, 1), [0.05, 0.05, 0.45, 0.45], rtol=1e-12)
    grouped = make_case(experts=8, smoothing=0.2, kind="node_grouped").spec
    for node in range(2):
        np.testing.assert_allclose(localised_distribution(grouped, node, 0), [0.25] * 4, rtol=1e-12)


def test_locality_loss_of_uniform_routing(make_case):
    case = make_case(experts=8, smoothing=0.2, mu=0.5)
    for tokens in case.ranks:
        tokens.x[:] = 0.0
    # Both nodes and groups have the same two levels, so that the weights of the cells drop out.
    expected = 0.5 * stats.entropy([0.25] * 4, [0.45, 0.45, 0.05, 0.05])
    assert locality_loss(*routed(case)) == pytest.approx(expected, rel=1e-12)
    for changes in ({"kind": "node_grouped"}, {"smoothing": 1.0}):
        flat = make_case(experts=8, **changes)
        for tokens in flat.ranks:
            tokens.x[:] = 0.0
        # KL of two equal distributions, to rounding.
        assert locality_loss(*routed(flat)) == pytest.approx(0.0, abs=1e-15)


def test_locality_loss_matches_masked_entropy(make_case):
    case = make_case(tokens=9, ranks=3, experts=8, gate="dense", mu=0.5)
    spec, ranks, routings = routed(case)
    domain, node = np.concatenate([t.domain for t in ranks]), np.concatenate([t.home for t in ranks]) // 2
    probability = np.concatenate([r.probability for r in routings])
    levels = {0: [0.475, 0.475, 0.025, 0.025], 1: [0.025, 0.025, 0.475, 0.475]}
    expected = 0.0
    for v in range(2):
        for g in range(2):
            mask = (node == v) & (domain == g)
            expected += mask.mean() * stats.entropy(probability[mask].mean(axis=0), levels[v])
    assert locality_loss(spec, ranks, routings) == pytest.approx(0.5 * expected, rel=1e-12)


def test_probability_of_exactly_zero_costs_nothing_and_stays_finite(make_case):
    case = make_case(gate="dense")
    for tokens in case.ranks:
        tokens.x[:] = 1e5  # scores thousands apart: exp underflows to 0
    spec, ranks, routings = routed(case)
    assert min(r.probability.min() for r in routings) == 0.0
    assert np.isfinite(locality_loss(spec, ranks, routings))
    assert all(np.isfinite(g).all() for g in locality_loss_gradient(spec, ranks, routings))


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("scope", ["rank", "node", "global"])
def test_gradients_match_central_differences(make_case, name, scope):
    loss, loss_gradient = LOSSES[name]
    spec, ranks, routings = routed(make_case(statistics=scope, top_k=2, alpha=1.0, mu=1.0))
    gradients, step = loss_gradient(spec, ranks, routings), 1e-6
    for routing, gradient in zip(routings, gradients):
        for index in np.ndindex(gradient.shape):
            value = routing.probability[index]
            routing.probability[index] = value + step
            above = loss(spec, ranks, routings)
            routing.probability[index] = value - step
            below = loss(spec, ranks, routings)
            routing.probability[index] = value
            # Losses of order 1 are rounded to 1e-16, which the division by the step raises to 1e-10.
            assert (above - below) / (2 * step) == pytest.approx(gradient[index], rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("scope", ["rank", "node", "global"])
def test_divergence_loss_is_the_entropy_of_the_domain_given_the_expert(make_case, scope):
    case = make_case(tokens=9, ranks=3, experts=8, groups=1, domains=3, gate="dense", divergence=0.6, statistics=scope)
    spec, ranks, routings = routed(case)
    domain, home = np.concatenate([t.domain for t in ranks]), np.concatenate([t.home for t in ranks])
    probability = np.concatenate([r.probability for r in routings])
    segment = {"rank": home, "node": home // 2, "global": 0 * home}[scope]
    expected = 0.0
    for s in np.unique(segment):
        joint = np.stack([probability[(segment == s) & (domain == d)].sum(0) for d in range(3)]) / len(domain)
        expected += sum(mass * stats.entropy(column) for mass, column in zip(joint.sum(0), joint.T))
    assert divergence_loss(spec, ranks, routings) == pytest.approx(0.6 * expected, rel=1e-12)


@pytest.mark.parametrize("apart, expected", [(True, 0.0), (False, np.log(2.0))])
def test_divergence_loss_of_domains_apart_and_of_domains_alike(make_case, apart, expected):
    case = make_case(ranks=1, tokens=4, experts=4, hidden=4, groups=1, domains=2, gate="dense", divergence=1.0)
    case.parameters.gate[:] = np.eye(4)
    tokens = case.ranks[0]
    tokens.domain[:] = [0, 0, 1, 1]
    tokens.x[:] = 100.0 * np.eye(4)[[0, 1, 2, 3] if apart else [0, 1, 0, 1]]
    # What a softmax leaves to the other experts at values of 100 is exp(-100).
    assert divergence_loss(*routed(case)) == pytest.approx(expected, abs=1e-12)
