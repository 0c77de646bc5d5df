"""Loss-free balance: rules by which the biases on selection follow the load (`moe.router.balance.kind`).

All three move a `BalanceBias` after a step, by sums over all ranks; a bias changes which experts are picked, and
neither weights nor gradients. They differ in what they look at:

- `sign` (Wang et al., arXiv 2408.15664, Algorithm 1; DeepSeek-V3): whether an expert has more than its share;
- `pid`: how much more it has, has had, and has gained: a PID controller on the load;
- `quantile` (Quantile Balancing: J. Su, kexue.fm/archives/11619; Kimi K3 report, Section 2.3.3 and Appendix D): what
  bias would have given it exactly its share of the step's tokens. It has no rate.

Shape legend: T tokens of this rank, k choices, n experts of a group, G groups, E = G * n experts, B bins, M sparse
layers.
"""

from typing import Sequence, Tuple

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.errors import InputError
from locmoe_ops.routers.base import RoutingShape
from locmoe_ops.routers.selection_bias import LIMIT, BalanceBias, BalanceUpdate


class PIDBias(BalanceBias):
    """A `BalanceBias` with the state of its controller: the integral of the error, and the error of the last step.

    Args:
        shape: sizes.

    Inputs rest, home, group, and output: as of `SelectionBias`.
    """

    def __init__(self, shape: RoutingShape) -> None:
        super().__init__(shape)
        zeros = np.zeros((shape.num_groups, shape.per_group), np.float32)
        self.balance_integral = Parameter(Tensor(zeros), name="balance_integral", requires_grad=False)
        self.balance_error = Parameter(Tensor(zeros), name="balance_error", requires_grad=False)


class QuantileBias(BalanceBias):
    """A `BalanceBias` that can tell which bias each token would have asked for.

    Args:
        shape: sizes; top_k below the n experts of a group, else InputError. bins: B, of each expert's histogram.

    Inputs rest, home, group, and output: as of `SelectionBias`.
    """

    def __init__(self, shape: RoutingShape, bins: int) -> None:
        super().__init__(shape)
        if shape.top_k == shape.per_group:
            raise InputError(
                f"balance by quantiles: top_k {shape.top_k} is all experts of a group; expected fewer, or no balance"
            )
        self.bins, self.top_k = bins, shape.top_k
        self.num_experts, self.per_group = shape.num_experts, shape.per_group
        self.largest = ops.TopK()
        self.offsets = Tensor(np.arange(shape.per_group, dtype=np.int32) * bins)

    def required(self, biased: Tensor, group: Tensor) -> Tensor:
        """Histograms of the bias r_ij = a_i - (biased_ij - b_j) with which expert j would be as good for token i as the
        best expert that it left out, a_i the (k+1)-th largest of the token's biased scores.

        Bins are equal, from `histogram_range`; what lies outside counts at its ends. Scores in [0, 1] lie inside.

        Args:
            biased: <float32>[T, n], scores with all biases. group: <int32>[T].

        Returns: <float32>[E * B], counts; an expert's bins are neighbours.
        """
        left_out = self.largest(biased, self.top_k + 1)[0][:, self.top_k :]  # (T, 1) <- (T, k + 1)
        required = left_out - biased + ops.gather(self.balance_bias, group, 0)  # (T, n)
        low, width = histogram_range(self.balance_bias, self.bins)
        place = ops.floor(ops.clamp((required - low) / width, 0.0, self.bins - 1.0))
        first = self.offsets + (group * (self.per_group * self.bins)).reshape(-1, 1)  # (T, n) <- (n,) + (T, 1)
        index = (ops.cast(place, dtype.int32) + first).reshape(-1)  # (T * n,) <- (T, n)
        ones = ops.ones(index.shape, dtype.float32)
        return ops.unsorted_segment_sum(ones, index, self.num_experts * self.bins)  # (E * B,)


def histogram_range(bias: Tensor, bins: int) -> Tuple[Tensor, Tensor]:
    """Where the histograms of required biases begin, and how wide a bin is: `bins` of them reach from min(b) - 1 to
    max(b) + 1 (Kimi K3, Appendix D), b the `bias` <float32>[G, n] of the step. Two <float32> scalars.
    """
    low = bias.min() - 1.0
    return low, (bias.max() + 1.0 - low) / bins


class SignUpdate(BalanceUpdate):
    """Moves the biases of all layers after a step: `b += rate * sign(mean load - load)`, then |b| <= LIMIT (ours).

    Args:
        biases: of the sparse layers, in order. rate: above 0 (DeepSeek-V3: 0.001).

    Inputs and output: as of `BalanceUpdate`.
    """

    def error(self, load: Tensor) -> Tensor:
        """<float32>[G, n]: 1 where an expert has less than its group's mean `load` <float32>[G, n], -1 where more."""
        return ops.sign(load.mean(-1, keep_dims=True) - load)


class PIDUpdate(nn.Cell):
    """Moves the biases of all layers after a step by a PID controller on e = clip(1 - load / mean load, -1, 1):

    integral += rate * e, |integral| <= LIMIT; b = integral + proportional * e + derivative * (e - e_before), where
    e_before is that of the step before, at first 0; |b| <= LIMIT. With the integral alone it is `BalanceUpdate`. What
    is published as ID Balancing (2026) was not at hand in full: error, form and limits are ours.

    Args:
        biases: of the sparse layers, in order; `PIDBias`. rate: gain of the integral, above 0.
        proportional, derivative: gains, 0 or more.

    Inputs and output: as of `BalanceUpdate`.
    """

    def __init__(self, biases: Sequence[BalanceBias], rate: float, proportional: float, derivative: float) -> None:
        super().__init__(auto_prefix=False)
        self.biases = nn.CellList(list(biases), auto_prefix=False)
        self.rate, self.proportional, self.derivative = rate, proportional, derivative

    def construct(self, assigned: Tensor, finite: Tensor) -> Tensor:
        largest = Tensor(0.0, dtype.float32)
        for layer, bias in enumerate(self.biases):
            shape = bias.balance_bias.shape
            load = assigned[layer].reshape(shape)  # (G, n) <- (E,)
            mean = load.mean(-1, keep_dims=True)  # (G, 1)
            error = ops.clamp(1.0 - load / ops.maximum(mean, 1.0), -1.0, 1.0) * ops.cast(mean > 0.0, dtype.float32)
            before = bias.balance_error * 1.0
            integral = ops.clamp(bias.balance_integral + self.rate * error, -LIMIT, LIMIT)
            moved = integral + self.proportional * error + self.derivative * (error - before)
            moves = ops.broadcast_to(finite.reshape(1, 1), shape)  # (G, n) <- (1, 1) <- ()
            moved = ops.select(moves, ops.clamp(moved, -LIMIT, LIMIT), bias.balance_bias * 1.0)
            ops.assign(bias.balance_integral, ops.select(moves, integral, bias.balance_integral * 1.0))
            ops.assign(bias.balance_error, ops.select(moves, error, before))
            ops.assign(bias.balance_bias, moved)
            largest = ops.maximum(largest, ops.abs(moved).max())
        return largest


class QuantileUpdate(nn.Cell):
    """Sets the biases of all layers after a step: b_j is the k/n quantile of what the step's tokens required of expert
    j, less the mean over the experts of its group (Kimi K3, Eq. 13-14); then |b| <= LIMIT (ours).

    Had tokens been picked with these biases, and the thresholds a_i been the same, each expert would have got k/n of
    them. The quantile is read off a histogram, in proportion inside its bin. A group without tokens keeps its biases.

    Args:
        biases: of the sparse layers, in order; `QuantileBias`.

    Inputs: required <float32>[M, E * B], summed over ranks (see `QuantileBias.required`); finite <bool> scalar: nothing
    moves where it is false. Output: the largest bias in size, <float32> scalar.
    """

    def __init__(self, biases: Sequence[BalanceBias]) -> None:
        super().__init__(auto_prefix=False)
        self.biases = nn.CellList(list(biases), auto_prefix=False)

    def construct(self, required: Tensor, finite: Tensor) -> Tensor:
        largest = Tensor(0.0, dtype.float32)
        for layer, bias in enumerate(self.biases):
            groups, per_group = bias.balance_bias.shape
            counts = required[layer].reshape(groups, per_group, bias.bins)  # (G, n, B) <- (E * B,)
            quantile = self.quantile(counts, bias.top_k / per_group)
            low, width = histogram_range(bias.balance_bias, bias.bins)
            wanted = low + quantile * width
            wanted = ops.clamp(wanted - wanted.mean(-1, keep_dims=True), -LIMIT, LIMIT)
            some = ops.logical_and(counts.sum(-1) > 0.0, finite)  # (G, n)
            moved = ops.select(some, wanted, bias.balance_bias * 1.0)
            ops.assign(bias.balance_bias, moved)
            largest = ops.maximum(largest, ops.abs(moved).max())
        return largest

    def quantile(self, counts: Tensor, share: float) -> Tensor:
        """In bins, where the lower `share` of `counts` <float32>[G, n, B] ends: <float32>[G, n]."""
        up_to = ops.cumsum(counts, -1)
        target = up_to[:, :, -1:] * share  # (G, n, 1)
        below = ops.cast(up_to < target, dtype.float32)
        place = below.sum(-1)  # bins that lie below as a whole
        before = ops.amax(up_to * below, -1)  # counts grow from bin to bin
        inside = (counts * one_hot_bins(place, counts)).sum(-1)
        return place + (target.reshape(before.shape) - before) / ops.maximum(inside, 1.0)  # (G, n) <- (G, n, 1)


def one_hot_bins(place: Tensor, counts: Tensor) -> Tensor:
    """<float32>, of the shape of `counts` [G, n, B]: 1 in the bin `place` <float32>[G, n], a whole number."""
    bins = ops.arange(0, counts.shape[-1], 1, dtype=dtype.float32)
    return ops.cast(place.expand_dims(-1) == bins, dtype.float32)


def make_balance_bias(kind: str, shape: RoutingShape, bins: int) -> BalanceBias:
    """The bias that `moe.router.balance.kind` asks for.

    Args:
        kind: of `router_registry.BALANCE_KINDS`, not none. shape: sizes. bins: of histograms, of quantile alone.
    """
    if kind == "quantile":
        return QuantileBias(shape, bins)
    return PIDBias(shape) if kind == "pid" else BalanceBias(shape)
