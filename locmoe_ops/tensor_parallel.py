"""Tensor parallelism: what the ranks of a `tp` group share out among themselves, and the sums that put it together
again.

All ranks of a group read the same rows. Outside of split regions they hold the same values and the same gradients, and
compute the same loss: of a group's losses, the objective counts one. Inside a region each rank has its own part of the
work: attention heads, inner features of a feed-forward network, words. With that, the gradient of what enters a region
is the sum over the group of what each part says about it, and the gradient of what leaves it, a sum of parts, is the
same for every part: f and g of Megatron-LM (arXiv 1909.08053, section 3). Then gradients of split and of replicated
parameters are those of one rank alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from mindspore import Parameter, Tensor, nn

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.shard_spec import ShardSpec


def marked(parameter: Parameter, part: Optional[ShardSpec]) -> Parameter:
    """The parameter, with a note of which `part` of a whole it is; None: it is held whole, by all ranks alike."""
    parameter.tensor_slice = part
    return parameter


def slice_of(parameter: Parameter) -> Optional[ShardSpec]:
    """What `marked` noted."""
    return getattr(parameter, "tensor_slice", None)


def whole_shape(parameter: Parameter) -> tuple[int, ...]:
    """Shape of the parameter as it is without tensor parallelism."""
    part = slice_of(parameter)
    return tuple(parameter.shape) if part is None else part.whole_shape(parameter.shape)


def own_part(parameter: Parameter, whole: np.ndarray) -> np.ndarray:
    """What this rank holds of a parameter whose whole value is `whole`."""
    part = slice_of(parameter)
    return whole if part is None else part.cut(whole)


@dataclass(frozen=True)
class TensorGroup:
    """This rank's place in its tensor-parallel group, and the ways into and out of split regions.

    Attributes:
        collectives: of this rank; None: it is alone.
    """

    collectives: Optional[Collectives] = None

    @property
    def size(self) -> int:
        return 1 if self.collectives is None else self.collectives.topology.tensor

    @property
    def index(self) -> int:
        return 0 if self.collectives is None else self.collectives.topology.tp_index(self.collectives.rank)

    def slice(self, axis: int, blocks: int = 1) -> Optional[ShardSpec]:
        """This rank's shard along `axis`, each of `blocks` equal stretches cut by itself; None in a group of one."""
        return None if self.size == 1 else ShardSpec(axis, self.index, self.size, blocks)

    def copy_in(self, tag: str) -> nn.Cell:
        """The way into a split region, for every tensor that comes from outside; `tag` names its collective."""
        if self.collectives is None or self.size == 1:
            return nn.Identity()
        return CopyToTensorParallel(self.collectives, tag)

    def reduce_out(self, tag: str) -> nn.Cell:
        """The way out: the sum of what the ranks have; `tag` names its collective."""
        if self.collectives is None or self.size == 1:
            return nn.Identity()
        return ReduceFromTensorParallel(self.collectives, tag)

    def all_gather(self, tag: str) -> nn.Cell:
        """(n, ...) -> (size * n, ...), in the order of the group (see `Collectives.all_gather`)."""
        return nn.Identity() if self.collectives is None else self.collectives.all_gather("tp", tag)


ALONE = TensorGroup()


@dataclass(frozen=True)
class SplitRegion:
    """A region whose work a tensor-parallel group shares out, with its ways in and out.

    Attributes:
        tensor: the group. copy_in, reduce_out: the ways (see `TensorGroup`; for shares of slots
            `locmoe_ops.dispatch.group_wise`); None where the rank is alone.
    """

    tensor: TensorGroup = ALONE
    copy_in: Optional[nn.Cell] = None
    reduce_out: Optional[nn.Cell] = None


class CopyToTensorParallel(nn.Cell):
    """The identity, whose gradient is summed over the group.

    Args:
        collectives: of this rank. tag: names the sum.

    Input and output: any tensor that all ranks of the group hold.
    """

    def __init__(self, collectives: Collectives, tag: str) -> None:
        super().__init__()
        self.sum = collectives.all_reduce("tp", f"{tag}/gradient")

    def construct(self, x: Tensor) -> Tensor:
        return x

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Any]:
        """The gradient of `x` from that of `out`, `dout`."""
        return (self.sum(dout),)


class ReduceFromTensorParallel(nn.Cell):
    """The sum over the group, whose gradient every rank gets as it is.

    Args:
        collectives: of this rank. tag: names the sum.

    Input and output: any tensor.
    """

    def __init__(self, collectives: Collectives, tag: str) -> None:
        super().__init__()
        self.sum = collectives.all_reduce("tp", f"{tag}/sum")

    def construct(self, x: Tensor) -> Tensor:
        return self.sum(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Any]:
        """The gradient of `x` from that of `out`, `dout`."""
        return (dout,)
