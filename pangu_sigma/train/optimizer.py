"""Hybrid Adam (PanGu-Sigma): one update rule, with another epsilon inside experts. State and epsilon are float32."""

from itertools import groupby
from typing import List, Sequence, Tuple

import numpy as np

from mindspore import Parameter, ParameterTuple, Tensor, dtype, nn, ops

from locmoe_ops.tensor_parallel import marked, slice_of
from pangu_sigma.config.schema_run import OptimizerConfig
from pangu_sigma.model.parameter_groups import group_key, is_expert_parameter


def on_device(parameters: Sequence[Parameter], options: OptimizerConfig) -> List[Parameter]:
    """Those that the compiled step updates: with `optimizer.expert_state` on the host all but experts, which come
    last.
    """
    return [p for p in parameters if options.expert_state == "device" or not is_expert_parameter(p.name)]


_adam = ops.AdamWeightDecay()
_multiply_no_nan = ops.MulNoNan()
_zeros_like = ops.ZerosLike()
_update = ops.MultitypeFuncGraph("update")
_scaled = ops.MultitypeFuncGraph("scaled")


@_update.register("Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor")
def _update_one(
    rate: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    epsilon: Tensor,
    decay: Tensor,
    scale: Tensor,
    parameter: Tensor,
    first: Tensor,
    second: Tensor,
    gradient: Tensor,
) -> Tensor:
    gradient = _multiply_no_nan(gradient, scale)  # 0 where scale is 0, whatever the gradient
    return _adam(parameter, first, second, rate, beta1, beta2, epsilon, decay, gradient)


class HybridAdam(nn.Cell):
    """Adam with decoupled weight decay and bias correction (arXiv 1711.05101, Algorithm 2). Idle experts are updated as
    well: this is dense Adam, in which an expert without tokens still moves by its momentum.

    The fused kernel computes `w -= a * (m / (sqrt(v) + e) + c * w)` without bias correction. With b1 = 1 - beta1^t and
    b2 = 1 - beta2^t, a = lr * sqrt(b2) / b1, e = epsilon * sqrt(b2), c = decay * lr / a, it is
    `w -= lr * ((m / b1) / (sqrt(v / b2) + epsilon) + decay * w)`, exactly the definition.

    Args:
        parameters: in the order of `ordered_parameters`.
        options: betas, epsilons and weight decay.

    Inputs: gradients, one <float32> tensor a parameter; learning_rate and scale (gradients are multiplied by it:
    unscaling and clipping in one), <float32> scalars; finite <bool> scalar: where false, nothing changes. State is
    updated in place.
    Output: the number of updates applied so far.
    """

    def __init__(self, parameters: Sequence[Parameter], options: OptimizerConfig) -> None:
        super().__init__(auto_prefix=False)
        self.parameters = ParameterTuple(parameters)
        self.first = _zeros_like_all(parameters, "adam_m")
        self.second = _zeros_like_all(parameters, "adam_v")
        self.updates = Parameter(Tensor(0.0, dtype.float32), name="optimizer.updates", requires_grad=False)
        self.groups = _groups(parameters, options)
        self.beta1, self.beta2 = options.beta1, options.beta2
        self.map = ops.HyperMap()

    def construct(self, gradients: Tuple[Tensor, ...], learning_rate: Tensor, scale: Tensor, finite: Tensor) -> Tensor:
        done = ops.cast(finite, dtype.float32)
        updates = self.updates + done
        ops.assign(self.updates, updates)
        rate, root_2, decay_scale = self.factors(updates, learning_rate * done)
        scale = ops.select(finite, scale, _zeros_like(scale))
        beta1 = self.beta1 * done + (1.0 - done)  # 1 where the step is skipped: the moments stay as they are
        beta2 = self.beta2 * done + (1.0 - done)
        for start, end, epsilon, decay in self.groups:
            update = ops.partial(_update, rate, beta1, beta2, root_2 * epsilon, decay_scale * decay, scale)
            self.map(
                update, self.parameters[start:end], self.first[start:end], self.second[start:end], gradients[start:end]
            )
        return updates

    def factors(self, updates: Tensor, learning_rate: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """a, sqrt(b2) and c / decay of the `updates`-th update at `learning_rate`."""
        count = ops.maximum(updates, 1.0)  # only 0 while nothing but overflows happened; then nothing is applied
        correction_1 = 1.0 - ops.pow(self.beta1, count)
        root_2 = ops.sqrt(1.0 - ops.pow(self.beta2, count))
        return learning_rate * root_2 / correction_1, root_2, correction_1 / root_2


@_scaled.register("Tensor", "Tensor")
def _scaled_one(scale: Tensor, gradient: Tensor) -> Tensor:
    return _multiply_no_nan(gradient, scale)


class HostUpdateScalars(nn.Cell):
    """What the host needs to update experts as `HybridAdam` would.

    Args:
        adam: whose factors these are.
        options: epsilon and decay of the experts.

    Inputs: gradients of the experts, learning_rate, scale and finite as `HybridAdam` takes them; updates, its output.
    Outputs: scalars <float32>[4]: 1 where the step counts, else 0; the fused kernel's rate, epsilon and decay (of what
    decays); then the gradients, multiplied by scale.
    """

    def __init__(self, adam: HybridAdam, options: OptimizerConfig) -> None:
        super().__init__(auto_prefix=False)
        self.adam = adam
        self.epsilon, self.decay = options.expert_epsilon, options.weight_decay
        self.map = ops.HyperMap()

    def construct(
        self, gradients: Tuple[Tensor, ...], learning_rate: Tensor, scale: Tensor, finite: Tensor, updates: Tensor
    ) -> Tuple[Tensor, ...]:
        done = ops.cast(finite, dtype.float32)
        rate, root_2, decay_scale = self.adam.factors(updates, learning_rate * done)
        scalars = ops.stack((done, rate, root_2 * self.epsilon, decay_scale * self.decay))
        scale = ops.select(finite, scale, _zeros_like(scale))
        return (scalars,) + self.map(ops.partial(_scaled, scale), gradients)


def _zeros_like_all(parameters: Sequence[Parameter], prefix: str) -> ParameterTuple:
    return ParameterTuple(
        [
            marked(
                Parameter(Tensor(np.zeros(p.shape, np.float32)), name=f"{prefix}.{p.name}", requires_grad=False),
                slice_of(p),
            )
            for p in parameters
        ]
    )


def _groups(parameters: Sequence[Parameter], options: OptimizerConfig) -> List[Tuple[int, int, float, float]]:
    """(start, end, epsilon, weight decay) of each run of parameters that are treated alike."""
    groups, start = [], 0
    for (expert, plain), members in groupby(parameters, key=lambda parameter: group_key(parameter.name)):
        end = start + len(list(members))
        groups.append(
            (start, end, options.expert_epsilon if expert else options.epsilon, 0.0 if plain else options.weight_decay)
        )
        start = end
    return groups
