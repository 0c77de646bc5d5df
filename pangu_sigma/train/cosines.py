"""`cosines.json`: how the tokens of one batch lie to each other and to the gates, and the capacity that LocMoE's theory
takes from it.

Keys: `layer`, the sparse layer (from 0; the last one) that the histograms are of; `token_token_within` and
`token_token_across`, pairs of tokens of one rank that go to the same expert and to different ones (first choices);
`token_gate`, tokens and the gate weights of their group; each with `edges` and `counts`, summed over ranks. `delta`: by
statistic, a list of the layers' values. `bound`: by form and statistic, tokens per expert of a sequence, a list
likewise, null where the number is too large. A layer whose router has no gate weights has null in these lists; where no
layer's has, they are left out, and `token_gate` where the last one's has none.
"""

from typing import Any, Dict, List, Optional

import numpy as np

from locmoe_ops.capacity.bound import FORMS, minimum_capacity
from locmoe_ops.capacity.delta import STATISTICS, CosineHistogram, as_delta, row_statistics, token_pair_cosines
from locmoe_ops.collectives.interface import Collectives
from pangu_sigma.config.derived import experts_per_group
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.train.capacity import MeanOverSequences
from pangu_sigma.train.evaluation import RoutedTokens

FILE = "cosines.json"


def measure_cosines(config: Config, layers: List[RoutedTokens], rows: int, collectives: Collectives) -> Dict[str, Any]:
    """What `cosines.json` holds, the same on every rank; every rank must call it.

    Args:
        config: of the run.
        layers: this rank's tokens, bottom up.
        rows: sequences among which they are divided.
        collectives: over whose ranks counts and means are taken.
    """
    last = layers[-1]
    pairs = token_pair_cosines(last.x, last.expert[:, 0])
    values = {"token_token_within": pairs.within, "token_token_across": pairs.across}
    if last.gates is not None:
        values["token_gate"] = last.token_gate()
    own = {name: CosineHistogram.of(cosines) for name, cosines in values.items()}
    counts = np.concatenate([histogram.counts for histogram in own.values()])
    total = HostSum(collectives, "cosines/counts").values(counts).astype(int)
    # Ranks of a tensor-parallel group have the same tokens.
    parts = np.split(total // collectives.topology.tensor, len(own))
    found: Dict[str, Any] = {
        "layer": len(layers) - 1,
        **{name: CosineHistogram(tuple(counts.tolist())).to_dict() for name, counts in zip(own, parts)},
    }
    with_gates = [number for number, layer in enumerate(layers) if layer.gates is not None]
    if not with_gates:
        return found
    per_layer = [
        [
            row_statistics(layer.token_gate(), layer.choice, statistic, config.moe.capacity.quantile, rows)
            for layer in (layers[number] for number in with_gates)
        ]
        for statistic in STATISTICS
    ]
    means = MeanOverSequences(collectives, "cosines/delta")(np.moveaxis(np.array(per_layer), -1, 0))  # (statistics, M)
    delta: Dict[str, List[Optional[float]]] = {statistic: [None] * len(layers) for statistic in STATISTICS}
    for statistic, row in zip(STATISTICS, means):
        for number, mean in zip(with_gates, row):
            delta[statistic][number] = as_delta(mean)
    size, experts = config.model.hidden_size, experts_per_group(config)
    bound = {
        form: {
            statistic: [
                None if value is None else _number(minimum_capacity(value, size, experts, form)) for value in row
            ]
            for statistic, row in delta.items()
        }
        for form in FORMS
    }
    return {**found, "delta": delta, "bound": bound}


def _number(value: float) -> Optional[float]:
    """JSON knows no infinity."""
    return float(value) if np.isfinite(value) else None
