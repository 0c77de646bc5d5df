"""The compiled training step.

With one micro-batch an optimizer step it is one graph, `WholeStep`: forward, backward, `Update`. With several it is
two: `MicroStep` (forward, backward, gradients and statistics added to accumulators), then `ApplyStep` (`Update` on the
accumulators, which it empties) or, where gradients are to set out during the last backward pass, `LastMicroStep`, which
is both in one. No graph has a data-dependent branch or a host round trip: a step that overflowed computes an update of
zero.
"""

from typing import Dict, Optional, Sequence, Tuple

import numpy as np

from mindspore import Parameter, ParameterTuple, Tensor, dtype, nn, ops

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.routers.selection_bias import BalanceBias, BalanceUpdate
from pangu_sigma.config.schema_run import OptimizerConfig
from pangu_sigma.model.objective import Objective
from pangu_sigma.train.gradient_overlap import GradientOverlap
from pangu_sigma.train.loss_scale import LossScale
from pangu_sigma.train.optimizer import HostUpdateScalars, HybridAdam, on_device
from pangu_sigma.train.sharding import gradient_exchange

# The order in which a compiled step takes a batch. A dict of tensors would be a constant of the graph, compiled anew
# each time.
BATCH_FIELDS = ("ids", "targets", "positions", "documents", "loss_mask", "domain", "home", "seeds")


class Statistics:
    """Where each sum of `Objective` lies in the one vector that is accumulated and exchanged.

    Args:
        counts_undecided: whether the sums hold `undecided`, as the network's `counts_undecided` says.
    """

    SCALARS = ("tokens", "task", "aux", "locality")

    def __init__(self, sparse_layers: int, num_experts: int, counts_undecided: bool = False) -> None:
        layers = max(sparse_layers, 1)
        self.layers, self.experts = (layers, num_experts) if sparse_layers else (1, 1)
        self.per_layer = ("kept", "kept_local", "undecided") if counts_undecided else ("kept", "kept_local")
        self.size = len(self.SCALARS) + self.layers * (self.experts + len(self.per_layer))

    def unpack(self, vector: np.ndarray) -> Dict[str, np.ndarray]:
        """Scalars by name; assigned [M, E]; kept, kept_local and, where it is counted, undecided [M]."""
        scalars = {name: vector[i] for i, name in enumerate(self.SCALARS)}
        rest = vector[len(self.SCALARS) :]
        cells = self.layers * self.experts
        by_name = dict(zip(self.per_layer, rest[cells:].reshape(-1, self.layers)))
        return {**scalars, "assigned": rest[:cells].reshape(self.layers, self.experts), **by_name}


def pack(sums: Dict[str, Tensor]) -> Tensor:
    """The vector of `Statistics` <float32>[size] from `Objective`'s sums, inside a graph."""
    scalars = ops.stack((sums["tokens"], sums["task"], sums["aux"], sums["locality"]))
    vectors: Tuple[Tensor, ...] = (scalars, sums["assigned"].reshape(-1), sums["kept"], sums["kept_local"])
    if "undecided" in sums:
        vectors += (sums["undecided"],)
    return ops.concat(vectors)


class Accumulators(nn.Cell):
    """Sums of gradients and statistics between optimizer steps: what the two graphs share."""

    def __init__(self, parameters: Sequence[Parameter], statistics_size: int) -> None:
        super().__init__(auto_prefix=False)
        self.gradients = ParameterTuple(
            [
                Parameter(Tensor(np.zeros(p.shape, np.float32)), name=f"gradient.{p.name}", requires_grad=False)
                for p in parameters
            ]
        )
        self.statistics = Parameter(
            Tensor(np.zeros(statistics_size, np.float32)), name="statistics", requires_grad=False
        )
        self.map = ops.HyperMap()

    def clear(self, after: Tensor) -> None:
        """Empties them once `after` has been computed."""
        self.map(ops.partial(_clear, after), self.gradients)
        _clear(after, self.statistics)


_add = ops.MultitypeFuncGraph("add")
_plus = ops.MultitypeFuncGraph("plus")
_clear = ops.MultitypeFuncGraph("clear")
_assign = ops.Assign()
_assign_add = ops.AssignAdd()
_depend = ops.Depend()
_zeros_like = ops.ZerosLike()


@_add.register("Tensor", "Tensor")
def _add_one(total: Tensor, gradient: Tensor) -> Tensor:
    return _assign_add(total, gradient)


@_plus.register("Tensor", "Tensor")
def _plus_one(total: Tensor, gradient: Tensor) -> Tensor:
    return total + gradient


@_clear.register("Tensor", "Tensor")
def _clear_one(after: Tensor, total: Tensor) -> Tensor:
    return _assign(total, _depend(_zeros_like(total), after))


class BatchGradients(nn.Cell):
    """Forward and backward of one micro-batch.

    Inputs: loss_scale <float32> scalar, then the tensors of `BATCH_FIELDS`. Outputs: this rank's statistics
    <float32>[size]; its gradients, in the order of `parameters`.
    """

    def __init__(self, objective: Objective, parameters: Sequence[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        self.objective = objective
        self.parameters = ParameterTuple(parameters)
        self.differentiate = ops.value_and_grad(objective, None, self.parameters, has_aux=True)

    def construct(
        self,
        loss_scale: Tensor,
        ids: Tensor,
        targets: Tensor,
        positions: Tensor,
        documents: Tensor,
        loss_mask: Tensor,
        domain: Tensor,
        home: Tensor,
        seeds: Tensor,
    ) -> Tuple[Tensor, Tuple[Tensor, ...]]:
        batch = {
            "ids": ids,
            "targets": targets,
            "positions": positions,
            "documents": documents,
            "loss_mask": loss_mask,
            "domain": domain,
            "home": home,
            "seeds": seeds,
        }
        (_, sums), gradients = self.differentiate(batch, loss_scale)
        return pack(sums), gradients


class MicroStep(nn.Cell):
    """`BatchGradients`, accumulated.

    Inputs: the tensors of `BATCH_FIELDS`. Output: this rank's statistics <float32>[size], accumulated since the last
    update.
    """

    def __init__(
        self, objective: Objective, parameters: Sequence[Parameter], accumulators: Accumulators, loss_scale: LossScale
    ) -> None:
        super().__init__(auto_prefix=False)
        self.differentiate = BatchGradients(objective, parameters)
        self.accumulators = accumulators
        self.loss_scale = loss_scale
        self.map = ops.HyperMap()

    def construct(self, *fields: Tensor) -> Tensor:
        statistics, gradients = self.differentiate(self.loss_scale.scale, *fields)
        self.map(_add, self.accumulators.gradients, gradients)
        return ops.assign_add(self.accumulators.statistics, statistics)


class Rebalance(nn.Cell):
    """Moves the routers' balance biases by the loads of a step.

    Args:
        biases: of the sparse layers, in order. rate: see `BalanceUpdate`. statistics: where the loads are in the
            vector.

    Inputs: vector <float32>[size], statistics summed over ranks; finite <bool> scalar. Output: as `BalanceUpdate`.
    """

    def __init__(self, biases: Sequence[BalanceBias], rate: float, statistics: Statistics) -> None:
        super().__init__(auto_prefix=False)
        self.shape = (statistics.layers, statistics.experts)
        self.start = len(Statistics.SCALARS)
        self.end = self.start + statistics.layers * statistics.experts
        self.update = BalanceUpdate(biases, rate)

    def construct(self, vector: Tensor, finite: Tensor) -> Tensor:
        return self.update(vector[self.start : self.end].reshape(self.shape), finite)


class Update(nn.Cell):
    """One optimizer step from this rank's gradients.

    1. Sum gradients and statistics over ranks.
    2. Scale by nominal / (loss scale x unmasked tokens): the gradient of the mean over the global batch.
    3. Clip by the global norm; skip the update, on all ranks alike, if the norm is not finite.
    4. Hybrid Adam, of this rank's share where `optimizer.shard` says so; loss scale; balance biases, where routers have
       them.

    With `optimizer.experts` on the host 4 leaves the experts to it (see `pangu_sigma.train.offloaded_experts`).

    Inputs: gradients, a tuple of <float32> tensors in the order of `parameters`; statistics <float32>[size];
        learning_rate <float32>
    scalar. Outputs: statistics summed over ranks; gradient norm before clipping, loss scale used and steps skipped so
    far; for the host, if it updates the experts, its orders <float32>[4] and the experts' gradients, unscaled and
    clipped.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        statistics_size: int,
        loss_scale: LossScale,
        optimizer: OptimizerConfig,
        collectives: Collectives,
        nominal_tokens: int,
        rebalance: Optional[Rebalance] = None,
        early: Optional[GradientOverlap] = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.loss_scale = loss_scale
        self.rebalances = rebalance is not None
        self.rebalance = nn.Identity() if rebalance is None else rebalance
        self.exchange = gradient_exchange(parameters, statistics_size, collectives, optimizer, early)
        targets = on_device(self.exchange.targets, optimizer)
        self.own = len(targets)  # of what is updated here; the rest is for the host
        self.hosted = self.own < len(self.exchange.targets)
        self.adam = HybridAdam(targets, optimizer)
        self.orders = HostUpdateScalars(self.adam, optimizer)
        self.clip_norm = optimizer.clip_norm
        self.nominal_tokens = float(nominal_tokens)

    def construct(self, gradients: Tuple[Tensor, ...], statistics: Tensor, learning_rate: Tensor) -> Tuple[Tensor, ...]:
        gradients, statistics, squares = self.exchange(gradients, statistics)
        scale_used = self.loss_scale.scale * 1.0  # a copy: the parameter changes below
        factor = self.nominal_tokens / (scale_used * ops.maximum(statistics[0], 1.0))
        norm = ops.sqrt(squares) * factor
        finite = ops.isfinite(norm)
        clip = factor if self.clip_norm is None else factor * ops.minimum(self.clip_norm / (norm + 1e-6), 1.0)
        self.exchange.take_share()
        updates = self.adam(gradients[: self.own], learning_rate, clip, finite)
        self.exchange.spread_share()
        skipped = ops.depend(self.loss_scale(finite), updates)
        if self.rebalances:
            skipped = ops.depend(skipped, self.rebalance(statistics, finite))
        if self.hosted:
            orders = self.orders(gradients[self.own :], learning_rate, clip, finite, updates)
            return (statistics, norm, scale_used, ops.depend(skipped, orders)) + orders
        return statistics, norm, scale_used, skipped


class WholeStep(nn.Cell):
    """Forward, backward and update of a step with one micro-batch, without accumulators.

    Inputs: learning_rate <float32> scalar, then the tensors of `BATCH_FIELDS`. Outputs: as `Update`.
    """

    def __init__(self, objective: Objective, parameters: Sequence[Parameter], update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.differentiate = BatchGradients(objective, parameters)
        self.update = update

    def construct(self, learning_rate: Tensor, *fields: Tensor) -> Tuple[Tensor, ...]:
        statistics, gradients = self.differentiate(self.update.loss_scale.scale, *fields)
        return self.update(gradients, statistics, learning_rate)


class ApplyStep(nn.Cell):
    """`Update` with what the micro-steps accumulated; the accumulators are empty afterwards.

    Inputs: learning_rate <float32> scalar. Outputs: as `Update`.
    """

    def __init__(self, accumulators: Accumulators, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.accumulators = accumulators
        self.update = update

    def construct(self, learning_rate: Tensor) -> Tuple[Tensor, ...]:
        accumulated = self.accumulators
        results = self.update(accumulated.gradients[:], accumulated.statistics * 1.0, learning_rate)
        accumulated.clear(results[3])
        return results


class LastMicroStep(nn.Cell):
    """`MicroStep` and `ApplyStep` in one graph, for a last micro-batch whose gradients set out during its backward
    pass.

    Args:
        early: says how many those are, the first ones; they come out of the backward pass with what was accumulated
            before.

    Inputs: learning_rate <float32> scalar, then the tensors of `BATCH_FIELDS`. Outputs: as `Update`.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: Sequence[Parameter],
        accumulators: Accumulators,
        update: Update,
        early: GradientOverlap,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.differentiate = BatchGradients(objective, parameters)
        self.accumulators = accumulators
        self.update = update
        self.first = len(early.parameters)
        self.map = ops.HyperMap()

    def construct(self, learning_rate: Tensor, *fields: Tensor) -> Tuple[Tensor, ...]:
        accumulated = self.accumulators
        statistics, gradients = self.differentiate(self.update.loss_scale.scale, *fields)
        late = self.map(_plus, accumulated.gradients[self.first :], gradients[self.first :])
        results = self.update(gradients[: self.first] + late, accumulated.statistics + statistics, learning_rate)
        accumulated.clear(results[3])
        return results


class EvaluationStep(nn.Cell):
    """Forward of one batch. Inputs: the tensors of `BATCH_FIELDS`. Output: this rank's statistics <float32>[size]."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(auto_prefix=False)
        self.objective = objective

    def construct(
        self,
        ids: Tensor,
        targets: Tensor,
        positions: Tensor,
        documents: Tensor,
        loss_mask: Tensor,
        domain: Tensor,
        home: Tensor,
        seeds: Tensor,
    ) -> Tensor:
        batch = {
            "ids": ids,
            "targets": targets,
            "positions": positions,
            "documents": documents,
            "loss_mask": loss_mask,
            "domain": domain,
            "home": home,
            "seeds": seeds,
        }
        _, sums = self.objective(batch, Tensor(1.0, dtype.float32))
        return pack(sums)
