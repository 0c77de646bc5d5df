"""Validation during training: perplexity of the network as it is, and of the line that any model must beat."""

import math
from typing import Dict, List, Optional

import numpy as np

from locmoe_ops.routers.selection_bias import current_locality_strength, without_locality_rules
from pangu_sigma.data.batch import Batch
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.vocabulary import unigram_perplexity
from pangu_sigma.metrics.perplexity import perplexity_of
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.train.engine import TrainEngine
from pangu_sigma.train.metrics import validation_metrics
from pangu_sigma.train.statistics import check_row_limit


class Validation:
    """Perplexity on the fixed validation rows; all ranks take part and get the same numbers.

    Args:
        engine: whose network is measured.
        tensor: ranks of a tensor-parallel group, which read the same rows.
        batches: this rank's share of the rows; may be empty on all ranks: then there is nothing to measure.
        host_sum: over all ranks.
    """

    def __init__(self, engine: TrainEngine, tensor: int, batches: List[Batch], host_sum: HostSum) -> None:
        self.batches = batches
        self._engine = engine
        self._tensor = tensor
        self._host_sum = host_sum

    def measure(self) -> Dict[str, Optional[float]]:
        """`valid/...` of the network as it is trained; where routers prefer local experts also
        `valid/local_term_off/...`: the model's worth where nobody knows which experts are near, as after training on
        one device. Where `moe.evaluation_rules` is none, `valid/...` alone, without any rule of locality.
        """
        if not self.batches:
            return {}
        if self._engine.context.config.moe.evaluation_rules == "none":
            with without_locality_rules(self._engine.network):
                return validation_metrics(self._sums())
        metrics = validation_metrics(self._sums())
        strength: Optional[float] = current_locality_strength(self._engine.network)
        if strength is not None:
            self._engine.set_locality_bias(0.0)
            metrics.update(validation_metrics(self._sums(), "valid/local_term_off/"))
            self._engine.set_locality_bias(strength)
        return metrics

    def _sums(self) -> Dict[str, np.ndarray]:
        own = self._engine.evaluate(self.batches) / self._tensor
        sums = self._engine.statistics.unpack(self._host_sum.values(own))
        check_row_limit(sums, self._engine.context.config.moe.dispatch.ragged_limit, "validation")
        return sums


def validation_unigram(data: PreparedData, batches: List[Batch], host_sum: HostSum) -> Optional[float]:
    """Perplexity of training frequencies on the validation rows of all ranks, the line any model must beat; None where
    there are no rows. Every rank must call it.

    Args:
        data: whose training text gives the frequencies.
        batches: this rank's share of the rows.
        host_sum: over all ranks.
    """
    tokens = sum(float(b.loss_mask.sum()) for b in batches)
    nats = math.log(unigram_perplexity(data.token_counts, batches)) * tokens if tokens else 0.0
    nats, tokens = host_sum.values(np.array([nats, tokens]))
    return perplexity_of(nats / tokens) if tokens else None
