"""Perplexity on the fixed validation rows: as trained, and with the routers' local term off."""

from typing import Dict, List, Optional

import numpy as np

from locmoe_ops.routers.selection_bias import current_locality_strength
from pangu_sigma.data.batch import Batch
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.train.engine import TrainEngine
from pangu_sigma.train.metrics import validation_metrics


class Validation:
    """Measures on the same rows each time; all ranks take part and get the same numbers.

    Args:
        batches: this rank's share of the validation rows; may be empty on all ranks: then there is nothing to measure.
    """

    def __init__(self, parts: TrainEngine, runtime: Runtime, batches: List[Batch], host_sum: HostSum) -> None:
        self.batches = batches
        self._parts = parts
        self._tensor = runtime.topology.tensor
        self._host_sum = host_sum

    def measure(self) -> Dict[str, Optional[float]]:
        """`valid/...` of the network as it stands; where routers prefer local experts also `valid/local_term_off/...`:
        what the model is worth where nobody knows which experts are near, as after training on one device.
        """
        if not self.batches:
            return {}
        metrics = validation_metrics(self._sums())
        strength: Optional[float] = current_locality_strength(self._parts.network)
        if strength is not None:
            self._parts.set_locality_bias(0.0)
            metrics.update(validation_metrics(self._sums(), "valid/local_term_off/"))
            self._parts.set_locality_bias(strength)
        return metrics

    def _sums(self) -> Dict[str, np.ndarray]:
        own = self._parts.evaluate(self.batches) / self._tensor
        return self._parts.statistics.unpack(self._host_sum.values(own))
