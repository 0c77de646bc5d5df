"""Expert computation and storage separation (ECSS of PanGu-Sigma, arXiv 2303.10845): experts' optimizer state in host
memory.

Shape legend: L experts of this rank, A of them that a step activated, d hidden size.

The compiled step ends with the experts' gradients, summed, unscaled and clipped. Then, outside of it,

1. those of the experts that are to be updated come to the host, once;
2. MindSpore's CPU kernel updates the host's copy of their weights and both moments;
3. their new weights go to the device, once.

The device holds no moments of experts, and no state ever travels. Of a step that was skipped nothing is transferred but
its scalars.

`host_dense` updates all experts: it is the update of `HybridAdam`, on CPU to the bit, since the kernel is the same and
treats every number by itself. `host_lazy` updates the experts that the step activated, on whichever rank: those whose
output bias has a gradient. It is lazy Adam: an idle expert's moments do not decay and its weights stay as they are,
where dense Adam moves them by their momentum and weight decay. The bias correction counts the steps of the run, not
those of the expert.
"""

from typing import Dict, List, Optional, Sequence

import numpy as np

from mindspore import Parameter, Tensor, dtype, ops

from locmoe_ops.tensor_parallel import slice_of
from pangu_sigma.checkpoint.names import MOMENTS
from pangu_sigma.checkpoint.state import StateEntry
from pangu_sigma.config.schema_run import OptimizerConfig
from pangu_sigma.model.parameter_groups import decays

OUTPUT_BIAS = "b_out"  # its gradient is the sum of those of an expert's results: zero where no token came by


class OffloadedExpertOptimizer:
    """Updates the experts of one rank.

    Args:
        parameters: of experts, in gradient order.
        options: as the compiled step has them.

    Attributes:
        lazy: whether idle experts are left alone.
        weights: the network's expert parameters by name, as checkpoints have them: setting one sets host and device.
        moments: all first, then all second ones, as checkpoints have them.
        transferred: bytes from and to the device since the start, gradients and weights.
    """

    def __init__(self, parameters: Sequence[Parameter], options: OptimizerConfig) -> None:
        self.lazy = options.expert_state == "host_lazy"
        self._banks = [_HostBank(parameter, options) for parameter in parameters]
        self._layers: Dict[str, List[int]] = {}  # by layer, the output bias first: indices of parameters
        for index, parameter in enumerate(parameters):
            layer, _, part = parameter.name.rpartition(".")
            self._layers.setdefault(layer, []).insert(0 if part == OUTPUT_BIAS else len(parameters), index)
        self.weights = {bank.weights.name: bank.weights for bank in self._banks}
        self.moments = [bank.moments[order] for order in range(len(MOMENTS)) for bank in self._banks]
        self.transferred = 0

    def update(self, scalars: Tensor, gradients: Sequence[Tensor]) -> None:
        """One step, by what the compiled step returned.

        Args:
            scalars: <float32>[4] of `HostUpdateScalars`.
            gradients: one <float32> tensor a parameter.
        """
        counts, *factors = scalars.asnumpy().tolist()
        if not counts:
            return
        for indices in self._layers.values():
            active = everybody = np.arange(self._banks[indices[0]].experts)
            if self.lazy:  # experts whose output bias has a gradient
                of_bias = gradients[indices[0]].asnumpy()
                active = np.flatnonzero(of_bias.reshape(everybody.size, -1).any(1))  # (L, d) <- (L, 1, d)
            for index in indices if active.size else ():
                rows = gradients[index]
                if active.size < everybody.size:
                    rows = ops.gather(rows, Tensor(active, dtype.int32), 0)  # (A, ...) <- (L, ...)
                self.transferred += 2 * rows.nbytes
                self._banks[index].update(active, rows.asnumpy(), factors)


class _HostBank:
    """One parameter of the experts: the host's weights and moments, an array an expert, and the device's weights."""

    def __init__(self, parameter: Parameter, options: OptimizerConfig) -> None:
        values = parameter.asnumpy()
        self.experts = len(values)
        self._parameter = parameter
        self._decay = decays(parameter.name)
        self._betas = options.beta1, options.beta2
        self._weights = [_host(value) for value in values]
        self._first, self._second = ([_host(np.zeros_like(value)) for value in values] for _ in MOMENTS)
        self._adam = ops.AdamWeightDecay().set_device("CPU")
        self.weights = self._entry("", self._weights, parameter)
        self.moments = [self._entry(prefix, held) for prefix, held in zip(MOMENTS, (self._first, self._second))]

    def _entry(self, prefix: str, held: Sequence[Parameter], on_device: Optional[Parameter] = None) -> StateEntry:
        """What the host has of each expert, as one array <float32>[L, ...]; `on_device` is set to the same value."""

        def set_all(value: np.ndarray) -> None:
            for expert, own in zip(held, value):
                expert.set_data(Tensor(own))
            if on_device is not None:
                on_device.set_data(Tensor(value))

        return StateEntry(
            f"{prefix}{self._parameter.name}",
            tuple(self._parameter.shape),
            slice_of(self._parameter),
            lambda: np.stack([expert.asnumpy() for expert in held]),
            set_all,
        )

    def update(self, active: np.ndarray, gradients: np.ndarray, factors: Sequence[float]) -> None:
        """Updates some experts.

        Args:
            active: <int64>[A], their places.
            gradients: <float32>[A, ...].
            factors: the kernel's rate, epsilon and decay.
        """
        rate, epsilon, decay = factors
        for expert, gradient in zip(active.tolist(), gradients):
            self._adam(
                self._weights[expert],
                self._first[expert],
                self._second[expert],
                rate,
                *self._betas,
                epsilon,
                decay if self._decay else 0.0,
                Tensor(gradient),
            )
        updated = np.stack([self._weights[expert].asnumpy() for expert in active.tolist()])  # (A, ...)
        ops.scatter_update(self._parameter, Tensor(active, dtype.int32), Tensor(updated))


def _host(value: np.ndarray) -> Parameter:
    """An array that the CPU kernel may change in place; no graph ever has it."""
    return Parameter(Tensor(value.copy()), requires_grad=False)
