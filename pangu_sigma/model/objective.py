"""The training objective of one rank's micro-batch, and the sums that metrics are made of.

The objective of a step is the sum over ranks (and micro-batches) of
`sum_t mask_t * CE_t + (L_aux + L_loc) * sum_t mask_t`, divided by the number of unmasked tokens in the whole global
batch. That division happens once, after gradients are summed: hence the result does not depend on how rows are spread.
Ranks of a tensor-parallel group compute the same loss, which counts once (see `locmoe_ops.tensor_parallel`): gradients
and statistics are summed over data-parallel ranks alone.

Shape legend: B rows of this rank's micro-batch, S positions, T = B * S tokens, M sparse layers, E experts.
"""

from typing import Dict, List, Tuple, TypedDict

from mindspore import Tensor, dtype, nn, ops

from pangu_sigma.model.inputs import BatchTensors
from pangu_sigma.model.pangu_sigma import PanGuSigma


class _SumsOfAll(TypedDict):
    tokens: Tensor
    task: Tensor
    aux: Tensor
    locality: Tensor
    assigned: Tensor
    kept: Tensor
    kept_local: Tensor


class ObjectiveSums(_SumsOfAll, total=False):
    """Sums over a rank's micro-batch, inside a graph; a dense network has one layer and one expert of zeros.

    Attributes:
        tokens, task: <float32> scalars: unmasked tokens; their cross-entropy in nats.
        aux, locality: <float32> scalars: the routers' losses, times tokens.
        assigned: <float32>[M, E], assignments of each expert before drops.
        kept, kept_local: <float32>[M], assignments that found a slot, and those of them on the token's home node.
        undecided: <float32>[M], tokens whose choice the gate left open; only where the network's routers count them.
        value_sums: <float32>[M, E], of gate values; only where the network's routers sum them.
        required: <float32>[M, E * B], histograms of the balance biases that tokens required; only where the network's
            biases follow quantiles.
        beyond_limit: <float32> scalar, rows that came to this rank beyond the room for them; only where the network's
            dispatchers limit that.
        tokens_by_nodes: <float32>[M, Q], tokens whose experts are on 1, 2, ... Q nodes; only where `most_nodes` of the
            network, Q, is not 0.
        copies: <float32>[M], copies of tokens that this rank sent to other nodes; only where the network's dispatchers
            count them.
    """

    undecided: Tensor
    value_sums: Tensor
    required: Tensor
    beyond_limit: Tensor
    tokens_by_nodes: Tensor
    copies: Tensor


class Objective(nn.Cell):
    """Loss of a micro-batch, summed over tokens and divided by a constant that keeps it of order 1.

    1. Cross-entropy of the logits, summed over unmasked tokens.
    2. The routers' auxiliary and locality losses, times the number of these tokens.

    Args:
        network: whose parameters keep their names.
        nominal_tokens: the constant, tokens of the global batch.

    Inputs: batch, a dict of tensors (see `BatchTensors`); loss_scale <float32> scalar.
    Outputs: the scaled objective; this rank's sums (see `ObjectiveSums`).
    """

    def __init__(self, network: PanGuSigma, nominal_tokens: int) -> None:
        super().__init__(auto_prefix=False)  # parameters keep the network's own names
        self.network = network
        self.nominal_tokens = float(nominal_tokens)

    def construct(self, batch: BatchTensors, loss_scale: Tensor) -> Tuple[Tensor, ObjectiveSums]:
        logits, reports = self.forward(batch)
        return self.total(logits, reports, batch, loss_scale)

    def forward(self, batch: BatchTensors) -> Tuple[Tensor, List[Dict[str, Tensor]]]:
        """Logits (B, S, V), and the routing of every sparse layer, bottom up."""
        return self.network(
            batch["ids"], batch["positions"], batch["documents"], batch["domain"], batch["home"], batch["seeds"]
        )

    def total(
        self, logits: Tensor, reports: List[Dict[str, Tensor]], batch: BatchTensors, loss_scale: Tensor
    ) -> Tuple[Tensor, ObjectiveSums]:
        """The outputs of `construct`, from `logits` and `reports`, which `forward` gives, and from `batch` and
        `loss_scale`, as `construct` takes them.
        """
        mask = batch["loss_mask"].reshape(-1)  # (T,) <- (B, S)
        targets = batch["targets"].reshape(-1)  # (T,) <- (B, S)
        losses, _ = self.network.token_losses(ops.cast(logits, dtype.float32), targets)
        tokens, task = mask.sum(), (losses * mask).sum()
        aux, locality = Tensor(0.0, dtype.float32), Tensor(0.0, dtype.float32)
        for report in reports:
            aux = aux + report["aux_loss"]
            locality = locality + report["locality_loss"]
        total = task + (aux + locality) * tokens
        assigned, kept = ops.zeros((1, 1), dtype.float32), ops.zeros((1,), dtype.float32)
        kept_local = kept
        if reports:
            assigned = ops.stack([report["assigned"] for report in reports])  # (M, E) <- M x (E,)
            kept = ops.stack([report["kept"] for report in reports])  # (M,) <- M x ()
            kept_local = ops.stack([report["kept_local"] for report in reports])  # (M,) <- M x ()
        sums: ObjectiveSums = {
            "tokens": tokens,
            "task": task,
            "aux": aux * tokens,
            "locality": locality * tokens,
            "assigned": assigned,
            "kept": kept,
            "kept_local": kept_local,
        }
        if self.network.counts_undecided:
            sums["undecided"] = ops.stack(_of_layers(reports, "undecided", kept[0]))  # (M,) <- M x ()
        if self.network.counts_copies:
            sums["copies"] = ops.stack([report["copies"] for report in reports])  # (M,) <- M x ()
        if self.network.sums_values:
            sums["value_sums"] = ops.stack(_of_layers(reports, "value_sums", assigned[0]))  # (M, E) <- M x (E,)
        if self.network.required_bins:
            none = ops.tile(ops.zeros_like(assigned[0]), (self.network.required_bins,))  # (E * B,) <- (E,)
            sums["required"] = ops.stack(_of_layers(reports, "required", none))  # (M, E * B) <- M x (E * B,)
        if self.network.limits_rows:
            sums["beyond_limit"] = ops.stack([report["beyond_limit"] for report in reports]).sum()  # () <- (M,)
        if self.network.most_nodes:
            by_nodes = [report["tokens_by_nodes"] for report in reports]
            sums["tokens_by_nodes"] = ops.stack(by_nodes)  # (M, Q) <- M x (Q,)
        return total * (loss_scale / self.nominal_tokens), sums


def _of_layers(reports: List[Dict[str, Tensor]], name: str, like: Tensor) -> List[Tensor]:
    """What each layer reports under `name`, in a graph; of a layer whose router has no such thing, zeros as `like`."""
    found = []
    for report in reports:
        if name in report:
            found.append(report[name])
        else:
            found.append(ops.zeros_like(like))
    return found
