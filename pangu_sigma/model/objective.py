"""The training objective of one rank's micro-batch, and the sums that metrics are made of.

The objective of a step is the sum over ranks (and micro-batches) of
`sum_t mask_t * CE_t + (L_aux + L_loc) * sum_t mask_t`, divided by the number of unmasked tokens in the whole global
batch. That division happens once, after gradients are summed: hence the result does not depend on how rows are spread.
Ranks of a tensor-parallel group compute the same loss, which counts once (see `locmoe_ops.tensor_parallel`): gradients
and statistics are summed over data-parallel ranks alone.

Shape legend: B rows of this rank's micro-batch, S positions, T = B * S tokens, M sparse layers, E experts.
"""

from typing import Dict, List, Tuple

from mindspore import Tensor, dtype, nn, ops

from pangu_sigma.model.inputs import BatchTensors
from pangu_sigma.model.pangu_sigma import PanGuSigma


class Objective(nn.Cell):
    """Loss of a micro-batch, summed over tokens and divided by a constant that keeps it of order 1.

    1. Cross-entropy of the logits, summed over unmasked tokens.
    2. The routers' auxiliary and locality losses, times the number of these tokens.

    Args:
        network: whose parameters keep their names.
        nominal_tokens: the constant, tokens of the global batch.

    Inputs: batch, a dict of tensors (see `BatchTensors`); loss_scale <float32> scalar.
    Outputs: the scaled objective; a dict of this rank's sums: tokens (unmasked), task (nats), aux and locality (times
    tokens), assigned <float32>[M, E], kept, kept_local <float32>[M] (one layer of zeros where there are no sparse
    layers), and undecided <float32>[M] where the network's routers count it.
    """

    def __init__(self, network: PanGuSigma, nominal_tokens: int) -> None:
        super().__init__(auto_prefix=False)  # parameters keep the network's own names
        self.network = network
        self.nominal_tokens = float(nominal_tokens)

    def construct(self, batch: BatchTensors, loss_scale: Tensor) -> Tuple[Tensor, Dict[str, Tensor]]:
        logits, reports = self.network(
            batch["ids"], batch["positions"], batch["documents"], batch["domain"], batch["home"], batch["seeds"]
        )
        mask = batch["loss_mask"].reshape(-1)  # (T,) <- (B, S)
        targets = batch["targets"].reshape(-1)  # (T,) <- (B, S)
        losses, _ = self.network.token_losses(ops.cast(logits, dtype.float32), targets)
        tokens, task = mask.sum(), (losses * mask).sum()
        aux, locality = Tensor(0.0, dtype.float32), Tensor(0.0, dtype.float32)
        for report in reports:
            aux = aux + report["aux_loss"]
            locality = locality + report["locality_loss"]
        total = task + (aux + locality) * tokens
        assigned, kept, kept_local = self._router_sums(reports)
        sums = {
            "tokens": tokens,
            "task": task,
            "aux": aux * tokens,
            "locality": locality * tokens,
            "assigned": assigned,
            "kept": kept,
            "kept_local": kept_local,
        }
        if self.network.counts_undecided:
            sums["undecided"] = ops.stack([report["undecided"] for report in reports])
        return total * (loss_scale / self.nominal_tokens), sums

    def _router_sums(self, reports: List[Dict[str, Tensor]]) -> Tuple[Tensor, Tensor, Tensor]:
        """assigned [M, E], kept [M], kept_local [M]; a dense network has one layer and expert of zeros."""
        if not reports:
            return ops.zeros((1, 1), dtype.float32), ops.zeros((1,), dtype.float32), ops.zeros((1,), dtype.float32)
        return (
            ops.stack([report["assigned"] for report in reports]),
            ops.stack([report["kept"] for report in reports]),
            ops.stack([report["kept_local"] for report in reports]),
        )
