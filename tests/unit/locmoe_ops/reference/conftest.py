"""Small random MoE layers for the tests of the reference."""

from dataclasses import replace
from typing import Any, Callable, NamedTuple

import numpy as np
import pytest

from locmoe_ops.reference.spec import LayerParameters, LayerSpec, RankTokens, SharedWeights
from locmoe_ops.topology import ExpertPlacement, Topology

VOCABULARY = 11


class Case(NamedTuple):
    spec: LayerSpec
    parameters: LayerParameters
    ranks: list

    def with_spec(self, **changes: Any) -> "Case":
        return self._replace(spec=replace(self.spec, **changes))


def build_case(
    seed: int = 0,
    ranks: int = 2,
    tokens: int = 6,
    hidden: int = 8,
    inner: int = 5,
    experts: int = 4,
    groups: int = 2,
    ep: int = 4,
    domains: int = 0,
    shared: int = 0,
    **options: Any,
) -> Case:
    """A layer on a cluster of two nodes of two ranks; domain i uses group i, or all the only group where `domains` are
    given; capacity drops nothing unless given; there are so many `shared` experts.
    """
    rng = np.random.default_rng(seed)
    spec = LayerSpec(
        layout=Topology(world_size=4, ranks_per_node=2, expert=ep),
        placement=ExpertPlacement(experts, groups, ep, kind=options.pop("kind", "interleaved")),
        capacity=options.pop("capacity", tokens),
        domain_groups=(0,) * domains or tuple(range(groups)),
        **options,
    )
    parameters = LayerParameters(
        **_networks(rng, (experts, hidden, inner)),
        gate=rng.normal(size=(experts, hidden)),
        table=_table(rng, spec),
    )
    ranks_of_tokens = [_rank_tokens(rng, tokens, hidden, domains or groups) for _ in range(ranks)]
    if shared:
        parameters = replace(parameters, shared=SharedWeights(**_networks(rng, (shared, hidden, inner))))
    return Case(spec, parameters, ranks_of_tokens)


def _networks(rng: np.random.Generator, shape: tuple) -> dict[str, np.ndarray]:
    experts, hidden, inner = shape
    return {
        "w1": rng.normal(size=(experts, hidden, inner)),
        "b1": rng.normal(size=(experts, inner)),
        "w2": rng.normal(size=(experts, inner, hidden)),
        "b2": rng.normal(size=(experts, hidden)),
    }


def _table(rng: np.random.Generator, spec: LayerSpec) -> np.ndarray:
    """Experts of each id: any, or, for several an id, different ones."""
    if spec.router != "hash" or spec.top_k == 1:
        return rng.integers(0, spec.experts_per_group, (spec.num_groups, VOCABULARY))
    return rng.random((spec.num_groups, VOCABULARY, spec.experts_per_group)).argsort(-1)[..., : spec.top_k]


def _rank_tokens(rng: np.random.Generator, tokens: int, hidden: int, domains: int) -> RankTokens:
    return RankTokens(
        x=rng.normal(size=(tokens, hidden)),
        token_ids=rng.integers(0, VOCABULARY, tokens),
        domain=rng.integers(0, domains, tokens),
        home=rng.integers(0, 4, tokens),
    )


@pytest.fixture
def make_case() -> Callable[..., Case]:
    return build_case
