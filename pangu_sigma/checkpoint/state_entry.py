"""What a checkpoint is made of and read into: named arrays, which parameters are, and others that stand for several of
them.
"""

from typing import Optional, Protocol, Sequence, Tuple

import numpy as np

from mindspore import Parameter, Tensor

from locmoe_ops.shard_spec import ShardSpec
from locmoe_ops.tensor_parallel import slice_of


class Named(Protocol):
    """A named array of the state (see `locmoe_ops.tensor_parallel.slice_of` for what part of a whole it is)."""

    name: str

    @property
    def shape(self) -> Tuple[int, ...]: ...


class Readable(Named, Protocol):
    """One that can be read."""

    def asnumpy(self) -> np.ndarray: ...


class Settable(Named, Protocol):
    """One that can be set."""

    def set_data(self, value: Tensor) -> None: ...


class Entry(Readable, Settable, Protocol):
    """Both; a `Parameter` is one."""


class Beside:
    """An entry of the shape of a parameter."""

    def __init__(self, parameter: Parameter, prefix: str) -> None:
        self.name = f"{prefix}{parameter.name}"
        self.shape: Tuple[int, ...] = tuple(parameter.shape)
        self.tensor_slice: Optional[ShardSpec] = slice_of(parameter)


class Bank(Beside):
    """What the host has of each expert, as one array <float32>[L, ...].

    Args: experts: one host array each. parameter: of the network, as whose `prefix` the bank is named. beside: takes
    the same value.
    """

    def __init__(
        self, parameter: Parameter, prefix: str, experts: Sequence[Parameter], beside: Optional[Parameter] = None
    ) -> None:
        super().__init__(parameter, prefix)
        self._experts = experts
        self._beside_it = beside

    def asnumpy(self) -> np.ndarray:
        return np.stack([expert.asnumpy() for expert in self._experts])

    def set_data(self, value: Tensor) -> None:
        for expert, own in zip(self._experts, value.asnumpy()):
            expert.set_data(Tensor(own))
        if self._beside_it is not None:
            self._beside_it.set_data(value)
