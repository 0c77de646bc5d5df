"""The compiled training step.

With one micro-batch an optimizer step it is one graph, `WholeStep`: forward, backward, `Update`. With several it is
two: `MicroStep` (forward, backward, gradients and statistics added to accumulators), then `ApplyStep` (`Update` on the
accumulators, which it empties) or, where gradients are summed during the last backward pass, `LastMicroStep`, which is
both in one. No graph has a data-dependent branch: a step that overflowed computes an update of zero. None waits for the
host, except with ragged dispatch, the counts of which the host reads.

Every graph takes a batch as `pangu_sigma.model.inputs.pack_batch` orders it, and returns what
`pangu_sigma.train.update.step_outputs` says.
"""

from typing import Optional, Sequence, Tuple

import numpy as np

from mindspore import Parameter, ParameterTuple, Tensor, dtype, nn, ops
from mindspore.ops.auto_generate import InplaceAddExt

from pangu_sigma.config.chips import LARGEST_IN_PRODUCT
from pangu_sigma.model.inputs import unpack_batch
from pangu_sigma.model.objective import Objective
from pangu_sigma.train.gradient_overlap import GradientOverlap
from pangu_sigma.train.half_copies import Differentiated, HalfCopies
from pangu_sigma.train.overflow import StatusRegister
from pangu_sigma.train.schedule import LossScale
from pangu_sigma.train.statistics import pack_statistics
from pangu_sigma.train.update import Update, step_outputs


class Accumulators(nn.Cell):
    """Sums of gradients and statistics between optimizer steps: what the two graphs share.

    Args:
        parameters: whose gradients are accumulated, in order.
        statistics_size: numbers of the statistics.
        overflows: count overflows too, those that a `StatusRegister` tells of.
    """

    def __init__(self, parameters: Sequence[Parameter], statistics_size: int, overflows: bool = False) -> None:
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
        count = Parameter(Tensor(np.zeros((), np.float32)), name="overflows", requires_grad=False)
        self.overflows = ParameterTuple([count] if overflows else [])
        self.map = ops.HyperMap()

    def clear(self, after: Tensor) -> None:
        """Empties them once `after` has been computed."""
        self.map(ops.partial(_clear, after), self.gradients)
        _clear(after, self.statistics)
        for count in self.overflows:
            _clear(after, count)


_add = ops.MultitypeFuncGraph("add")
_add_fused = ops.MultitypeFuncGraph("add_fused")
_plus = ops.MultitypeFuncGraph("plus")
_clear = ops.MultitypeFuncGraph("clear")
_assign = ops.Assign()
_assign_add = ops.AssignAdd()
_inplace_add = InplaceAddExt()
_depend = ops.Depend()
_zeros_like = ops.ZerosLike()


@_add.register("Tensor", "Tensor")
def _add_one(total: Tensor, gradient: Tensor) -> Tensor:
    return _assign_add(total, ops.cast(gradient, dtype.float32))


@_add_fused.register("Tensor", "Tensor")
def _add_fused_one(total: Tensor, gradient: Tensor) -> Tensor:
    in_product = gradient.ndim == 2 and gradient.size <= LARGEST_IN_PRODUCT
    if in_product or gradient.dtype == dtype.float32:
        return _assign_add(total, ops.cast(gradient, dtype.float32))  # as the pass wants it, cast included
    return _inplace_add(total, gradient)


@_plus.register("Tensor", "Tensor")
def _plus_one(total: Tensor, gradient: Tensor) -> Tensor:
    return total + ops.cast(gradient, dtype.float32)


@_clear.register("Tensor", "Tensor")
def _clear_one(after: Tensor, total: Tensor) -> Tensor:
    return _assign(total, _depend(_zeros_like(total), after))


class BatchGradients(nn.Cell):
    """Forward and backward of one micro-batch.

    Args:
        objective: what is differentiated.
        parameters: by which, in gradient order.
        register: tells of overflows that leave no trace in numbers; None: there are none.
        copies: which the objective's network computes with; None: with the parameters themselves.
        overlap: sums the first gradients during the backward pass, and says by what to differentiate for them; None:
            gradients come as they are.

    Inputs: loss_scale <float32> scalar, then the tensors of `BATCH_FIELDS`. Outputs: this rank's statistics
    <float32>[size]; its gradients, in the order of `parameters` and of the type of what the network reads, float32 or
    that of a copy; and where there is a register, in a tuple that is else empty, whether it tells of an overflow
    <float32>.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: Sequence[Parameter],
        register: Optional[StatusRegister] = None,
        copies: Optional[HalfCopies] = None,
        overlap: Optional[GradientOverlap] = None,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.objective = objective
        read = Differentiated(list(parameters)) if copies is None else copies.differentiated(parameters)
        carriers = [] if overlap is None else overlap.carriers
        self.parameters = ParameterTuple(carriers + read.parameters[len(carriers) :])
        self.count, self.twice = read.gradients, read.twice
        self.differentiate = ops.value_and_grad(objective, None, self.parameters, has_aux=True)
        self.registers = register is not None
        self.register = nn.Identity() if register is None else register

    def construct(self, loss_scale: Tensor, *fields: Tensor) -> Tuple[Tensor, Tuple[Tensor, ...], Tuple[Tensor, ...]]:
        if self.registers:
            fields = self.register.clear(fields)
        (_, sums), found = self.differentiate(unpack_batch(*fields), loss_scale)
        gradients = found[: self.count]
        for number, place in enumerate(self.twice):
            both = _plus_one(gradients[place], found[self.count + number])
            gradients = gradients[:place] + (both,) + gradients[place + 1 :]
        statistics = pack_statistics(sums)
        overflow: Tuple[Tensor, ...] = ()
        if self.registers:
            overflow = (self.register.overflowed(gradients + (statistics,)),)
        return statistics, gradients, overflow


class MicroStep(nn.Cell):
    """`BatchGradients`, accumulated.

    Args:
        differentiate: whose gradients; the accumulators count the overflows of its register.
        accumulators: what this adds to.
        loss_scale: holds the scale that the objective is multiplied by.
        fused: gradients of copies are added without a pass of their own (`runtime.fused.accumulate`): those of small
            weights by their products, which is MindSpore's affair, others by an operator that reads both types.

    Inputs: the tensors of `BATCH_FIELDS`. Output: this rank's statistics <float32>[size], accumulated since the last
    update.
    """

    def __init__(
        self,
        differentiate: BatchGradients,
        accumulators: Accumulators,
        loss_scale: LossScale,
        fused: bool = False,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.fused = fused
        self.differentiate = differentiate
        self.accumulators = accumulators
        self.loss_scale = loss_scale
        self.map = ops.HyperMap()

    def construct(self, *fields: Tensor) -> Tensor:
        statistics, gradients, overflow = self.differentiate(self.loss_scale.scale, *fields)
        if self.fused:
            self.map(_add_fused, self.accumulators.gradients, gradients)
        else:
            self.map(_add, self.accumulators.gradients, gradients)
        if self.accumulators.overflows:
            self.map(_add, self.accumulators.overflows, overflow)
        return ops.assign_add(self.accumulators.statistics, statistics)


class WholeStep(nn.Cell):
    """Forward, backward and update of a step with one micro-batch, without accumulators.

    Args:
        differentiate: whose gradients, all of them float32.
        update: applies them.

    Inputs: learning_rate <float32> scalar, then the tensors of `BATCH_FIELDS`. Outputs: see `step_outputs`.
    """

    def __init__(self, differentiate: BatchGradients, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.differentiate = differentiate
        self.update = update

    def construct(self, learning_rate: Tensor, *fields: Tensor) -> Tuple[Tensor, ...]:
        statistics, gradients, overflow = self.differentiate(self.update.loss_scale.scale, *fields)
        return step_outputs(self.update(gradients, statistics, learning_rate, overflow))


class ApplyStep(nn.Cell):
    """`Update` with what the micro-steps accumulated; the accumulators are empty afterwards.

    Inputs: learning_rate <float32> scalar. Outputs: see `step_outputs`.
    """

    def __init__(self, accumulators: Accumulators, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.accumulators = accumulators
        self.update = update

    def construct(self, learning_rate: Tensor) -> Tuple[Tensor, ...]:
        accumulated = self.accumulators
        overflow: Tuple[Tensor, ...] = ()
        if accumulated.overflows:
            overflow = (accumulated.overflows[0] * 1.0,)
        results = self.update(accumulated.gradients[:], accumulated.statistics * 1.0, learning_rate, overflow)
        accumulated.clear(results["skipped_steps"])
        return step_outputs(results)


class LastMicroStep(nn.Cell):
    """`MicroStep` and `ApplyStep` in one graph, for a last micro-batch whose gradients are summed over ranks during its
    backward pass.

    Args:
        differentiate: whose gradients.
        accumulators: hold the sums of earlier micro-batches.
        update: applies the gradients.
        overlap: says how many gradients are summed early, the first ones; they come out of the backward pass with what
            was accumulated before.

    Inputs: learning_rate <float32> scalar, then the tensors of `BATCH_FIELDS`. Outputs: see `step_outputs`.
    """

    def __init__(
        self, differentiate: BatchGradients, accumulators: Accumulators, update: Update, overlap: GradientOverlap
    ) -> None:
        super().__init__(auto_prefix=False)
        self.differentiate = differentiate
        self.accumulators = accumulators
        self.update = update
        self.overlapped = len(overlap.parameters)
        self.map = ops.HyperMap()

    def construct(self, learning_rate: Tensor, *fields: Tensor) -> Tuple[Tensor, ...]:
        accumulated = self.accumulators
        statistics, gradients, overflow = self.differentiate(self.update.loss_scale.scale, *fields)
        late = self.map(_plus, accumulated.gradients[self.overlapped :], gradients[self.overlapped :])
        if accumulated.overflows:
            overflow = (accumulated.overflows[0] + overflow[0],)
        summed = gradients[: self.overlapped] + late
        results = self.update(summed, accumulated.statistics + statistics, learning_rate, overflow)
        accumulated.clear(results["skipped_steps"])
        return step_outputs(results)
