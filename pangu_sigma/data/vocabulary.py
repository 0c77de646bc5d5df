"""Ids of a network: sizes of the tables that they look up, how often each occurs, and the yardstick that any trained
model must beat.
"""

import math
from dataclasses import dataclass
from typing import Iterable, Optional

import numpy as np

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema import Config
from pangu_sigma.data.batch import Batch
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.domains import resolve_domain_groups


@dataclass(frozen=True)
class Vocabulary:
    """Sizes of the tables that ids look up.

    Attributes:
        vocab_size: rows of a word table.
        domains: of the data.
        counts: <int64>[groups, vocab_size], how often each id occurs in the training text of a group's domains.
        id_nodes: <int>[groups, vocab_size], see `pangu_sigma.data.cooccurrence`; None: not asked for.
    """

    vocab_size: int
    domains: int
    counts: np.ndarray
    id_nodes: Optional[np.ndarray] = None


def vocabulary(config: Config, data: PreparedData) -> Vocabulary:
    """The vocabulary of a network of `config` that is fed `data`: at least the tokenizer's ids, more where
    `model.vocab_size` says so.

    Raises:
        InputError: data and model disagree on vocabulary, row length or domains, or `parallel.tensor` does not divide
            the vocabulary.
    """
    groups = resolve_domain_groups(config.moe.domain_groups, len(data.domains), config.moe.num_groups)
    vocab_size = config.model.vocab_size or data.vocab_size
    if vocab_size < data.vocab_size:
        raise InputError(
            f"model.vocab_size ({vocab_size}) is smaller than the {data.vocab_size} pieces of the tokenizer in "
            f"{data.path}; expected at least as many, or null"
        )
    tensor = config.parallel.tensor
    if vocab_size % tensor:
        raise InputError(
            f"parallel.tensor ({tensor}) does not divide the {vocab_size} words of the vocabulary in {data.path}; "
            f"expected a divisor, or model.vocab_size: {-(-vocab_size // tensor) * tensor}"
        )
    if data.sequence_length != config.model.sequence_length:
        raise InputError(
            f"model.sequence_length ({config.model.sequence_length}) differs from that of the rows in {data.path} "
            f"({data.sequence_length}); expected the same, or prepare the data anew"
        )
    counts = np.zeros((config.moe.num_groups, vocab_size), np.int64)
    for group, of_domain in zip(groups, data.domain_token_counts):
        counts[group, : data.vocab_size] += of_domain
    return Vocabulary(vocab_size, len(data.domains), counts)


def unigram_perplexity(token_counts: np.ndarray, batches: Iterable[Batch]) -> float:
    """Perplexity of ids drawn independently by their add-one-smoothed training frequency, on the batches' targets,
    weighted by loss_mask.

    `token_counts`: (vocab_size,) int64. Returns nan where no target counts.
    """
    losses = math.log(int(token_counts.sum()) + len(token_counts)) - np.log(token_counts + 1.0)  # nats of each id
    total = weight = 0.0
    for batch in batches:
        total += float((losses[batch.targets] * batch.loss_mask).sum())
        weight += float(batch.loss_mask.sum(dtype=np.float64))
    return math.exp(total / weight) if weight else math.nan
