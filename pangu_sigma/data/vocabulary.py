"""Sizes of the tables that ids look up: of the data, or of the configuration where that says more."""

from dataclasses import dataclass

import numpy as np

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema import Config
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.domains import resolve_domain_groups


@dataclass(frozen=True)
class Vocabulary:
    """Sizes of the tables that ids look up."""

    words: int
    domains: int
    counts: np.ndarray  # <int64>[groups, words], how often each id occurs in the training text of a group's domains


def vocabulary(config: Config, data: PreparedData) -> Vocabulary:
    """Words of the network: at least the tokenizer's, more where `model.vocab_size` says so.

    Raises:
        InputError: data and model disagree on vocabulary, row length or domains, or `parallel.tensor` does not divide
            the words.
    """
    groups = resolve_domain_groups(config.moe.domain_groups, len(data.domains), config.moe.num_groups)
    words = config.model.vocab_size or data.vocab_size
    if words < data.vocab_size:
        raise InputError(
            f"model.vocab_size ({words}) is smaller than the {data.vocab_size} pieces of the tokenizer in "
            f"{data.path}; expected at least as many, or null"
        )
    tensor = config.parallel.tensor
    if words % tensor:
        raise InputError(
            f"parallel.tensor ({tensor}) does not divide the {words} words of the vocabulary in {data.path}; expected "
            f"a divisor, or model.vocab_size: {-(-words // tensor) * tensor}"
        )
    if data.sequence_length != config.model.sequence_length:
        raise InputError(
            f"model.sequence_length ({config.model.sequence_length}) differs from that of the rows in {data.path} "
            f"({data.sequence_length}); expected the same, or prepare the data anew"
        )
    counts = np.zeros((config.moe.num_groups, words), np.int64)
    for group, of_domain in zip(groups, data.domain_token_counts):
        counts[group, : data.vocab_size] += of_domain
    return Vocabulary(words, len(data.domains), counts)
