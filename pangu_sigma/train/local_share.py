"""A far tier that follows what training measures: `moe.capacity.measured_share`.

1. A forward pass as in evaluation, with the local term as it is in the step, gives each token's experts
   (`EvaluationStep`). It has no noise, and counts assignments before any is dropped.
2. Of each node and sparse layer, the share of its tokens' assignments that go to other nodes. The largest counts: one
   number serves all layers and nodes, because each change of any of them is another graph.
3. The bucket that holds it (`SlotRules.far_shares`), by the policy of adaptive capacity: up at once, down with room to
   spare.
4. Slots of both tiers for that bucket (`SlotRules.bucket_shares`).

Counts are whole numbers summed over ranks, hence the same on all of them, and at any parallel degree. The state is part
of checkpoints: a run that is resumed decides as one that was not cut off.

Shape legend: T tokens of this rank, k choices, V nodes, M sparse layers, E experts.
"""

import math
from typing import Any, Callable, Dict, List, Optional

import numpy as np

from mindspore import Parameter, Tensor

from locmoe_ops.capacity.policy import AdaptiveCapacity
from locmoe_ops.topology import ExpertPlacement, local_experts_table
from pangu_sigma.checkpoint.names import SHARE_STATE
from pangu_sigma.data.batch import Batch
from pangu_sigma.model.sparse import SparseContext
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.train.capacity import POLICY_SIZE, LoadStep, pack_policy, unpack_policy
from pangu_sigma.train.evaluation import RoutedTokens

_PARTS = 10**6  # the policy counts shares in millionths


class LocalShareControl:
    """The bucket of the far tier in every training step. Without `moe.capacity.measured_share`, or without sparse
    layers, it does nothing.

    Args:
        context: of the network.
        layers: sparse ones.
        routed: the tokens that a micro-batch brings to each sparse layer.
        set_bucket: called with the bucket's place in `SlotRules.far_shares`, when a step is to use another one than the
            last.
    """

    def __init__(
        self,
        context: SparseContext,
        layers: int,
        routed: Callable[[Batch], List[RoutedTokens]],
        set_bucket: Callable[[int], None],
    ) -> None:
        moe = context.config.moe
        self._options = moe.capacity.measured_share if layers else None
        self._routed, self._set_bucket = routed, set_bucket
        self._bucket, self._last = 0, 0
        self._policy: Optional[AdaptiveCapacity] = None
        if self._options is None:
            return
        self._far = context.slot_rules.far_shares()
        self._parts = [math.ceil(share * _PARTS) for share in self._far]  # falling, as they
        self._layout = context.layout
        placement = ExpertPlacement(moe.num_experts, moe.num_groups, self._layout.expert, moe.expert_placement)
        self._local = local_experts_table(self._layout, placement)  # (layout ranks, E)
        self._sum = HostSum(context.collectives, "capacity/measured_share")
        # The policy, and the share that was last measured.
        self._saved = Parameter(Tensor(np.zeros(POLICY_SIZE + 1, np.int64)), name=SHARE_STATE, requires_grad=False)

    def prepare(self, step: int, load: LoadStep) -> None:
        """Before an optimizer step: measures where it is due, and sets the bucket. Every rank must call it.

        Args:
            step: from 1.
            load: reads the batches of a step.
        """
        if self._options is None or len(self._far) == 1:
            return
        if self._policy is None:
            self._policy = self._begin()
        if self._policy.is_due(step):
            self._last = min(math.ceil(self._leaving(step, load) * _PARTS), self._parts[0])
            self._policy.observe(step, self._last)
            packed = pack_policy(self._policy.state(), shift=1)  # a bucket may be 0
            self._saved.set_data(Tensor(np.append(packed, self._last)))
        bucket = self._parts.index(self._policy.bucket)
        if bucket != self._bucket:
            self._bucket = bucket
            self._set_bucket(bucket)

    def metrics(self) -> Dict[str, Any]:
        """`moe/measured_local_share`, `moe/local_share` (see `metrics`) of the step that `prepare` was last called
        for.
        """
        if self._policy is None:
            return {}
        return {
            "moe/measured_local_share": 1.0 - self._last / _PARTS,
            "moe/local_share": 1.0 - self._far[self._bucket],
        }

    def state(self) -> List[Parameter]:
        """What a checkpoint keeps; set before the first `prepare`, it is what a run resumes with."""
        return [self._saved] if self._options is not None else []

    def _begin(self) -> AdaptiveCapacity:
        """The policy as a checkpoint left it, or before its first measurement, with the largest far tier."""
        assert self._options is not None
        buckets = sorted(self._parts)
        policy = AdaptiveCapacity(self._options.interval, buckets, self._options.hysteresis, least=0)
        saved = self._saved.asnumpy()
        if saved[1]:  # decided. Of a run with other buckets the next larger one counts, or else the largest.
            policy.restore({**unpack_policy(saved[:-1], buckets[-1], shift=1), "buckets": buckets})
            self._last = int(saved[-1])
        return policy

    def _leaving(self, step: int, load: LoadStep) -> float:
        """Share of assignments that leave their node, of the node and layer that has most of them, in the batches of
        `step`.
        """
        counts: Any = 0  # (V, M, 2): assignments, and those that leave
        for batch in load(step - 1):
            counts = counts + np.stack([self._counts(batch, layer) for layer in self._routed(batch)], 1)
        total = self._sum.values(counts.astype(np.float64).reshape(-1)).reshape(counts.shape)  # (V * M * 2,)
        return float((total[..., 1] / np.maximum(total[..., 0], 1.0)).max())

    def _counts(self, batch: Batch, layer: RoutedTokens) -> np.ndarray:
        """<int64>[V, 2] of one micro-batch and layer."""
        home = np.repeat(batch.home, len(layer.expert) // len(batch.home))  # (T,) <- (B,)
        node = np.repeat(home // self._layout.ranks_per_node, layer.expert.shape[1])  # (T * k,)
        leaves = ~self._local[home[:, None], layer.expert].astype(bool).reshape(-1)  # (T * k,) <- (T, k)
        nodes = self._layout.nodes
        return np.stack([np.bincount(node, minlength=nodes), np.bincount(node[leaves], minlength=nodes)], 1)
