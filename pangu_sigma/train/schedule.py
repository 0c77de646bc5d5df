"""What changes from step to step: the learning rate, and what pulls tokens to their home nodes, on the host; the loss
scale of fp16, in the graph.
"""

import math
from dataclasses import dataclass
from typing import Optional

from mindspore import Parameter, Tensor, dtype, nn, ops

from pangu_sigma.config.schema import RouterConfig
from pangu_sigma.config.schema_run import LossScaleConfig, OptimizerConfig

LARGEST_SCALE = 2.0**126  # twice as much is still a float32; infinity would never halve again


def learning_rate(options: OptimizerConfig, total_steps: int, step: int) -> float:
    """The rate of an optimizer step: linear warm-up, then constant, or linear or cosine decay.

    After warm-up it falls from the peak to `end_learning_rate` at `decay_steps`, and stays there.

    Args:
        options: peak, end, schedule, warm-up and decay steps.
        total_steps: of the run, where `decay_steps` is null.
        step: from 1.
    """
    if step <= options.warmup_steps:
        return options.learning_rate * step / options.warmup_steps
    if options.schedule == "constant":
        return options.learning_rate
    span = max(1, (options.decay_steps or total_steps) - options.warmup_steps)
    progress = min(1.0, (step - options.warmup_steps) / span)
    left = 0.5 * (1.0 + math.cos(math.pi * progress)) if options.schedule == "cosine" else 1.0 - progress
    return options.end_learning_rate + (options.learning_rate - options.end_learning_rate) * left


@dataclass(frozen=True)
class Ramp:
    """A value that goes linearly from one number to another. It follows from the step's number alone, so that a run
    that is resumed has the value that it would have had.

    Attributes:
        initial: up to step `start_step`. final: from step `start_step` + `warmup_steps` on.
        start_step: last step of the initial value. warmup_steps: steps of the way; 0: a jump after start_step.
    """

    initial: float
    final: float
    start_step: int = 0
    warmup_steps: int = 0

    def at(self, step: int) -> float:
        """The value of optimizer step `step`, counted from 1."""
        if step <= self.start_step:
            return self.initial
        done = min(1.0, (step - self.start_step) / max(1, self.warmup_steps))
        return self.initial + done * (self.final - self.initial)


def locality_bias_ramp(router: RouterConfig) -> Optional[Ramp]:
    """The strength of the local term of `router`; None: it has no such term."""
    term = router.locality_bias
    if term.kind == "none":
        return None
    return Ramp(term.initial_strength, term.strength, term.start_step, term.warmup_steps)


def locality_loss_ramp(router: RouterConfig) -> Optional[Ramp]:
    """mu of the locality loss of `router`, where it changes from step to step; else None."""
    loss = router.locality_loss
    if loss.initial_weight is None:
        return None
    return Ramp(loss.initial_weight, router.own.locality_loss_weight, loss.start_step, loss.warmup_steps)


def context_ramp(router: RouterConfig) -> Optional[Ramp]:
    """The weight of the context beside codes, of a `router` that has one; else None."""
    weight = getattr(router.own, "context_weight", 0.0)
    if weight == 0.0:
        return None
    return Ramp(0.0, weight, router.own.context_start_step, router.own.context_warmup_steps)


def expert_choice_ramp(router: RouterConfig) -> Optional[Ramp]:
    """Whether experts choose (1) or tokens (0) under a `router` that goes from the one to the other; else None."""
    start = getattr(router.own, "expert_choice_start_step", None)
    return None if start is None else Ramp(0.0, 1.0, start)


class LossScale(nn.Cell):
    """Dynamic loss scale: halves after an overflow, doubles after `growth_interval` steps without one.

    It stays between `minimum` and `LARGEST_SCALE`. Without `options` (float32 training) it is 1 for good.

    Attributes:
        scale: by which the objective is multiplied.
        good: steps since the last change.
        skipped: steps that overflowed so far.

    Input: finite <bool> scalar, whether the step's gradients are. Output: `skipped`, this step included.
    """

    def __init__(self, options: Optional[LossScaleConfig] = None) -> None:
        super().__init__(auto_prefix=False)
        self.dynamic = options is not None
        self.interval = float(options.growth_interval) if options else 0.0
        self.minimum = options.minimum if options else 1.0
        self.scale = _state(options.initial if options else 1.0, "loss_scale.scale")
        self.good = _state(0.0, "loss_scale.good")
        self.skipped = _state(0.0, "loss_scale.skipped")

    def construct(self, finite: Tensor) -> Tensor:
        done = ops.cast(finite, dtype.float32)
        skipped = self.skipped + (1.0 - done)
        ops.assign(self.skipped, skipped)
        if self.dynamic:
            good = (self.good + 1.0) * done
            grow = ops.cast(good >= self.interval, dtype.float32)
            scale = self.scale * (1.0 + grow) * (0.5 + 0.5 * done)
            ops.assign(self.scale, ops.minimum(ops.maximum(scale, self.minimum), LARGEST_SCALE))
            ops.assign(self.good, good * (1.0 - grow))
        return skipped


def _state(value: float, name: str) -> Parameter:
    return Parameter(Tensor(value, dtype.float32), name=name, requires_grad=False)
