"""Nodes of ids, of the text of each expert group."""

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.data.cooccurrence import nodes_of_ids
from pangu_sigma.data.dataset import PreparedData

LAYOUT = Topology(4, 2, 4)


def config_of(balance: str, groups: int = 1):
    router = {"type": "hash", "hash": {"balance": balance}}
    of_domain = [0, 1, 0] if groups == 2 else None
    return config_from_dict(
        {"moe": {"num_experts": 8, "num_groups": groups, "domain_groups": of_domain, "router": router}}
    )


def test_domains_of_different_words_part(data: PreparedData) -> None:
    """Of three domains on two nodes, each is at home on one to more than by any of 50 even maps."""
    found = nodes_of_ids(config_of("cooccurrence"), data, data.vocab_size + 5, LAYOUT)
    assert found is not None and found.shape == (1, data.vocab_size + 5)
    counts, rng = data.domain_token_counts, np.random.default_rng(0)

    def at_home(node: np.ndarray) -> int:
        return sum(int(np.bincount(node, of_domain, minlength=2).max()) for of_domain in counts)

    even = [rng.permutation(np.arange(data.vocab_size) % 2) for _ in range(50)]
    assert at_home(found[0, : data.vocab_size]) > 1.2 * max(map(at_home, even))
    text = np.bincount(found[0, : data.vocab_size], counts.sum(0), minlength=2)
    # The text counted is without each row's last id, of 33.
    assert abs(text[0] - text[1]) <= 2 * counts.sum(0).max() + text.sum() / 33


def test_groups_are_split_by_themselves(data: PreparedData) -> None:
    found = nodes_of_ids(config_of("cooccurrence", 2), data, data.vocab_size, LAYOUT)
    assert found is not None
    for group, domains in enumerate(([0, 2], [1])):
        text = np.bincount(found[group], data.domain_token_counts[domains].sum(0), minlength=2)
        assert text.min() > 0.4 * text.sum()


def test_nobody_asks(data: PreparedData) -> None:
    assert nodes_of_ids(config_of("frequency"), data, data.vocab_size, None) is None


def test_nodes_that_are_not_known_are_asked_for(data: PreparedData) -> None:
    with pytest.raises(InputError, match=r"balance is cooccurrence, .* expected moe\.logical_topology"):
        nodes_of_ids(config_of("cooccurrence"), data, data.vocab_size, None)
