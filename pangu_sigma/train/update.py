"""The compiled update: from this rank's gradients to new parameters, and what a step's graph returns of it.

`step_outputs` and `read_outputs` are the two ends of what it returns.
"""

from typing import List, NamedTuple, Optional, Tuple, TypedDict

from mindspore import Tensor, nn, ops

from pangu_sigma.config.schema_run import OptimizerConfig
from pangu_sigma.train.optimizer import HostUpdateScalars, HybridAdam, on_device
from pangu_sigma.train.schedule import LossScale


class UpdateResults(TypedDict):
    """What `Update` leaves, inside a graph.

    Attributes:
        statistics: <float32>[size], summed over ranks.
        grad_norm, loss_scale, skipped_steps: <float32> scalars: the norm before clipping, the scale that was used, and
            the steps skipped so far.
        for_host: empty, or where the host updates the experts what `HostUpdateScalars` returns.
    """

    statistics: Tensor
    grad_norm: Tensor
    loss_scale: Tensor
    skipped_steps: Tensor
    for_host: Tuple[Tensor, ...]


class StepOutputs(NamedTuple):
    """What a step's graph returned, on the host; the entries are those of `UpdateResults`.

    Attributes:
        host_scalars: <float32>[4] of `HostUpdateScalars`, or None where the compiled step updates the experts.
        expert_gradients: unscaled and clipped, one tensor a parameter of the experts; or none.
    """

    statistics: Tensor
    grad_norm: Tensor
    loss_scale: Tensor
    skipped_steps: Tensor
    host_scalars: Optional[Tensor]
    expert_gradients: List[Tensor]


def step_outputs(results: UpdateResults) -> Tuple[Tensor, ...]:
    """The outputs of a step's graph from what `Update` left, inside that graph."""
    fixed = (results["statistics"], results["grad_norm"], results["loss_scale"], results["skipped_steps"])
    return fixed + results["for_host"]


def read_outputs(outputs: Tuple[Tensor, ...]) -> StepOutputs:
    """The outputs of a step's graph by name, on the host."""
    statistics, grad_norm, loss_scale, skipped_steps, *for_host = outputs
    host_scalars = for_host[0] if for_host else None
    return StepOutputs(statistics, grad_norm, loss_scale, skipped_steps, host_scalars, for_host[1:])


class Update(nn.Cell):
    """One optimizer step from this rank's gradients.

    1. Sum gradients and statistics over ranks.
    2. Scale by nominal / (loss scale x unmasked tokens): the gradient of the mean over the global batch.
    3. Clip by the global norm; skip the update, on all ranks alike, if the norm is not finite, or the status register
       of any rank's device has told of an overflow.
    4. Hybrid Adam, of this rank's share where `optimizer.zero` says so; loss scale; balance biases and means of gate
       values, where routers have them.

    With `optimizer.expert_state` on the host 4 leaves the experts to it (see `pangu_sigma.train.offloaded_experts`).

    Args:
        exchange: sums the gradients, see `pangu_sigma.train.flat.gradient_exchange`; its `targets` are updated.
        loss_scale: its state, which the update changes.
        optimizer: betas, epsilons, decay, clip norm, and who updates the experts.
        nominal_tokens: the constant that the objective was divided by.
        after: moves the routers' balance biases and means of gate values, if they have any, see
            `pangu_sigma.train.statistics`.
        sum_overflows: sums over all ranks what their registers tell; None: overflows show in the norm.

    Inputs: gradients, a tuple of <float32> tensors in the order of the exchange's parameters; statistics
    <float32>[size]; learning_rate <float32> scalar; overflow, of `BatchGradients`. Output: `UpdateResults`.
    """

    def __init__(
        self,
        exchange: nn.Cell,
        loss_scale: LossScale,
        optimizer: OptimizerConfig,
        nominal_tokens: int,
        after: Optional[nn.Cell] = None,
        sum_overflows: Optional[nn.Cell] = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.loss_scale = loss_scale
        self.reads_overflows = sum_overflows is not None
        self.sum_overflows = nn.Identity() if sum_overflows is None else sum_overflows
        self.moves_routers = after is not None
        self.after = nn.Identity() if after is None else after
        self.exchange = exchange
        targets = on_device(exchange.targets, optimizer)
        self.own = len(targets)  # of what is updated here; the rest is for the host
        self.hosted = self.own < len(exchange.targets)
        self.adam = HybridAdam(targets, optimizer)
        self.host_scalars = HostUpdateScalars(self.adam, optimizer)
        self.clip_norm = optimizer.clip_norm
        self.nominal_tokens = float(nominal_tokens)

    def construct(
        self,
        gradients: Tuple[Tensor, ...],
        statistics: Tensor,
        learning_rate: Tensor,
        overflow: Tuple[Tensor, ...] = (),
    ) -> UpdateResults:
        gradients, statistics, squares = self.exchange(gradients, statistics)
        scale_used = self.loss_scale.scale * 1.0  # a copy: the parameter changes below
        factor = self.nominal_tokens / (scale_used * ops.maximum(statistics[0], 1.0))
        norm = ops.sqrt(squares) * factor
        finite = ops.isfinite(norm)
        if self.reads_overflows:
            finite = ops.logical_and(finite, self.sum_overflows(overflow[0].reshape(1)).reshape(()) == 0.0)
        clip = factor if self.clip_norm is None else factor * ops.minimum(self.clip_norm / (norm + 1e-6), 1.0)
        self.exchange.take_share()
        updates = self.adam(gradients[: self.own], learning_rate, clip, finite)
        self.exchange.spread_share()
        skipped = ops.depend(self.loss_scale(finite), updates)
        if self.moves_routers:
            skipped = ops.depend(skipped, self.after(statistics, finite))
        for_host = ()
        if self.hosted:
            for_host = self.host_scalars(gradients[self.own :], learning_rate, clip, finite, updates)
            skipped = ops.depend(skipped, for_host)
        return {
            "statistics": statistics,
            "grad_norm": norm,
            "loss_scale": scale_used,
            "skipped_steps": skipped,
            "for_host": for_host,
        }
