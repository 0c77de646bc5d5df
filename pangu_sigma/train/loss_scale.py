"""The dynamic loss scale of fp16 training, and the count of skipped steps."""

from typing import Optional

from mindspore import Parameter, Tensor, dtype, nn, ops

from pangu_sigma.config.schema_run import LossScaleConfig

LARGEST = 2.0**126  # twice as much is still a float32; infinity would never halve again


class LossScale(nn.Cell):
    """Dynamic loss scale: halves after an overflow, doubles after `growth_interval` steps without one, up to `LARGEST`.

    A fixed scale of 1 where `options` is None (float32 training). State: scale, good (steps since the last change),
    skipped.
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
        """Takes note of one step; returns the number of steps skipped so far."""
        done = ops.cast(finite, dtype.float32)
        skipped = self.skipped + (1.0 - done)
        ops.assign(self.skipped, skipped)
        if self.dynamic:
            good = (self.good + 1.0) * done
            grow = ops.cast(good >= self.interval, dtype.float32)
            scale = self.scale * (1.0 + grow) * (0.5 + 0.5 * done)
            ops.assign(self.scale, ops.minimum(ops.maximum(scale, self.minimum), LARGEST))
            ops.assign(self.good, good * (1.0 - grow))
        return skipped


def _state(value: float, name: str) -> Parameter:
    return Parameter(Tensor(value, dtype.float32), name=name, requires_grad=False)
