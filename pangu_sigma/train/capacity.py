"""Expert capacity that a run measures itself: `moe.capacity.mode` critical and adaptive.

1. A forward pass as in evaluation gives the tokens that enter each router, their experts and the gate weights
   (`EvaluationStep`).
2. Delta of a layer: a statistic of the cosines of a sequence's tokens with their experts' gate weights, averaged over
   the sequences of all ranks.
3. LocMoE's bound for that delta, in slots a sequence (`locmoe_ops.capacity`); of the layers, the largest. One number
   serves all layers, because each change of any of them is another graph.
4. In adaptive mode the bucket that holds it, by `AdaptiveCapacity`; in critical mode it stays for the whole run.
5. Slots per (source rank, expert): that many for each sequence of a rank's micro-batch. Dispatchers are built from it
   as from the capacity factor that asks for as many, so that two tiers divide it as they divide a factor's slots.

Everything up to step 5 is counted per sequence. It is therefore the same on all ranks, at any parallel degree and
micro-batch size, and a run can resume at another one.
"""

import sys
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from mindspore import Parameter, Tensor

from locmoe_ops.capacity.bound import minimum_capacity
from locmoe_ops.capacity.delta import as_delta, row_statistics
from locmoe_ops.capacity.factor import capacity_by_factor, factor_of_slots
from locmoe_ops.capacity.policy import AdaptiveCapacity, capacity_buckets, slots_from_bound
from locmoe_ops.collectives.interface import Collectives
from pangu_sigma.checkpoint.names import CAPACITY_STATE
from pangu_sigma.config.derived import experts_per_group
from pangu_sigma.config.schema import MOST_BUCKETS, CapacityConfig
from pangu_sigma.data.batch import Batch
from pangu_sigma.model.sparse import SparseContext, experts_in_play
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.train.evaluation import RoutedTokens

POLICY_SIZE = 4 + MOST_BUCKETS  # numbers of a policy's state
_NEVER = sys.maxsize  # steps to the next measurement
_FINER = 2.0**20  # HostSum keeps 20 bits behind the point; cosines get 40

LoadStep = Callable[[int], List[Batch]]  # this rank's micro-batches of a step, counted from 0


@dataclass(frozen=True)
class SlotRule:
    """From a layer's delta to slots a sequence: `slots_from_bound` for a sample of one sequence.

    Attributes:
        options: form of the bound, and the limits of the capacity factor.
        sequence_length, hidden_size, top_k: of the model.
        per_group: experts that compete for a token.
        in_play: experts that share a rank's tokens; capacity factors refer to them.
    """

    options: CapacityConfig
    sequence_length: int
    hidden_size: int
    per_group: int
    top_k: int
    in_play: int

    def slots(self, delta: float) -> int:
        bound = minimum_capacity(delta, self.hidden_size, self.per_group, self.options.form)
        return slots_from_bound(
            bound,
            self.sequence_length,
            1,
            self.top_k,
            self.in_play,
            self.options.minimum_factor,
            self.options.maximum_factor,
        )

    def buckets(self) -> Tuple[int, ...]:
        """What slots a sequence may be: in critical mode any number, in adaptive mode a few between the least and the
        most.
        """
        options, least, most = self.options, 1, self.sequence_length
        if options.minimum_factor:
            least = capacity_by_factor(self.sequence_length, self.top_k, self.in_play, options.minimum_factor)
        if options.maximum_factor is not None:
            most = capacity_by_factor(self.sequence_length, self.top_k, self.in_play, options.maximum_factor)
        if options.mode == "critical":
            return tuple(range(least, most + 1))
        return capacity_buckets(most, least, options.buckets)


class MeanOverSequences:
    """Means over the sequences of all ranks, to the same bits on every one of them. Every rank must call it."""

    def __init__(self, collectives: Collectives, tag: str) -> None:
        self._sum = HostSum(collectives, tag)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """<float64>[...] <- this rank's sequences <float64>[rows, ...]"""
        own = np.append(values.sum(0).reshape(-1), len(values))
        total = self._sum.values(own * _FINER) / _FINER
        return (total[:-1] / total[-1]).reshape(values.shape[1:])


class CapacityControl:
    """The slots of every training step. In mode `factor`, or without sparse layers, it does nothing.

    Args:
        context: of the network.
        layers: sparse ones.
        routed: the tokens that a micro-batch brings to each sparse layer.
        set_capacity: called with slots per (source rank, expert) and the capacity factor that gives them, when a step
            is to use others than the last one.
    """

    def __init__(
        self,
        context: SparseContext,
        layers: int,
        routed: Callable[[Batch], List[RoutedTokens]],
        set_capacity: Callable[[int, float], None],
    ) -> None:
        config, shape = context.config, context.shape
        self._options = config.moe.capacity
        self._active = layers > 0 and self._options.mode != "factor"
        self._rows = shape.sequences
        self._rule = SlotRule(
            self._options,
            shape.sequence_length,
            shape.hidden_size,
            experts_per_group(config),
            config.moe.router.top_k,
            experts_in_play(context) if layers else 1,
        )
        self._routed, self._set_capacity = routed, set_capacity
        self._policy: Optional[AdaptiveCapacity] = None
        self._slots, self._factor = 0, 0.0
        if self._active:
            self._mean = MeanOverSequences(context.collectives, "capacity/delta")
            self._saved = Parameter(Tensor(np.zeros(POLICY_SIZE, np.int64)), name=CAPACITY_STATE, requires_grad=False)

    def prepare(self, step: int, load: LoadStep) -> None:
        """Before an optimizer step: measures where it is due, and sets the slots. Every rank must call it.

        Args:
            step: from 1.
            load: reads the batches of a step.
        """
        if not self._active:
            return
        if self._policy is None:
            self._policy = self._begin(step, load)
        elif not self._policy.is_due(step):
            return
        if self._policy.is_due(step):
            self._policy.observe(step, self._measure(step, 1, load))
        self._saved.set_data(Tensor(pack_policy(self._policy.state())))
        slots, rule = self._policy.bucket * self._rows, self._rule
        if slots != self._slots:
            tokens = self._rows * rule.sequence_length
            self._slots, self._factor = slots, factor_of_slots(slots, tokens, rule.top_k, rule.in_play)
            self._set_capacity(slots, self._factor)

    def metrics(self) -> Dict[str, Any]:
        """`moe/capacity_slots`, `moe/capacity_factor`, `moe/graphs` (see `metrics`) of the step that `prepare` was last
        called for.
        """
        if self._policy is None:
            return {}
        return {
            "moe/capacity_slots": self._slots,
            "moe/capacity_factor": self._factor,
            "moe/graphs": self._policy.graphs,
        }

    def state(self) -> List[Parameter]:
        """What a checkpoint keeps; set before the first `prepare`, it is what a run resumes with."""
        return [self._saved] if self._active else []

    def _begin(self, step: int, load: LoadStep) -> AdaptiveCapacity:
        """The policy as a checkpoint left it, or with a first measurement."""
        options, buckets = self._options, self._rule.buckets()
        interval = options.interval if options.mode == "adaptive" else _NEVER
        saved = self._saved.asnumpy()
        if saved[0]:
            policy = AdaptiveCapacity(interval, buckets, options.hysteresis)
            policy.restore({**unpack_policy(saved, buckets[-1]), "buckets": buckets})
            return policy
        slots = self._measure(step, options.estimate_steps, load)
        policy = AdaptiveCapacity(interval, buckets, options.hysteresis, slots)
        policy.observe(step, slots)
        return policy

    def _measure(self, step: int, steps: int, load: LoadStep) -> int:
        """Slots a sequence by the bound, from the batches of `steps` steps, of which the first is `step`."""
        batches = [batch for number in range(step - 1, step - 1 + steps) for batch in load(number)]
        statistic, quantile = self._options.delta_statistic, self._options.quantile
        of_layers = [  # <float64>[rows, M] of each batch
            np.stack(
                [
                    row_statistics(layer.token_gate(), layer.choice, statistic, quantile, self._rows)
                    for layer in self._routed(batch)
                ],
                1,
            )
            for batch in batches
        ]
        return max(self._rule.slots(as_delta(delta)) for delta in self._mean(np.concatenate(of_layers)))


def pack_policy(state: Dict[str, Any], shift: int = 0) -> np.ndarray:
    """What `AdaptiveCapacity.state` gives, for a checkpoint: bucket, step of the last decision (steps count from 1),
    largest number seen, changes; buckets used.

    Args:
        state: of the policy. shift: added to the buckets used, of which 0 stands for none.

    Returns: <int64>[POLICY_SIZE].
    """
    used = [bucket + shift for bucket in state["used"]]
    numbers = [state["bucket"], state["decided_at"] or 0, state["largest_seen"], state["changes"], *used]
    return np.array(numbers + [0] * MOST_BUCKETS, np.int64)[:POLICY_SIZE]


def unpack_policy(saved: np.ndarray, most: int, shift: int = 0) -> Dict[str, Any]:
    """The state that was packed.

    Args:
        saved: <int64>[POLICY_SIZE]. most: the largest bucket there is now, which what lies beyond becomes. shift: as
            packed with.
    """
    bucket, decided_at, largest_seen, changes, *used = (int(number) for number in saved)
    return {
        "bucket": min(bucket, most),
        "decided_at": decided_at or None,
        "largest_seen": min(largest_seen, most),
        "changes": changes,
        "used": [number - shift for number in used if number],
    }
