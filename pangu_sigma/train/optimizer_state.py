"""Where both moments of every parameter are, for checkpoints: set from whole arrays, and read as such."""

from functools import partial
from typing import Callable, List, Optional, Sequence, Tuple, Union

import numpy as np

from mindspore import Parameter, Tensor, nn

from locmoe_ops.collectives.hierarchical_reduce import HierarchicalAllGather
from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.tensor_parallel import slice_of
from pangu_sigma.checkpoint.names import MOMENTS
from pangu_sigma.checkpoint.state import StateEntry, parameter_entries
from pangu_sigma.train.flat import Bundles
from pangu_sigma.train.offloaded_experts import OffloadedExpertOptimizer
from pangu_sigma.train.sharding import Bucket, Shards
from pangu_sigma.train.update import Update


class ShardedMoments:
    """The moments of parameters that a group's ranks share out: of each bucket a rank holds one stretch, or, of biases
    and norms that are put together on each rank, all.

    Args:
        shards: which parameters, in which buckets.
        first, second: this rank's stretches of both moments, one a bucket.
        collectives: put the stretches together.
    """

    def __init__(
        self,
        shards: Union[Shards, Bundles],
        first: Sequence[Parameter],
        second: Sequence[Parameter],
        collectives: Collectives,
    ) -> None:
        self._shards = shards
        self._moments = dict(zip(MOMENTS, (first, second)))
        self._gather: Optional[nn.Cell] = None
        if shards.ranks > 1:
            self._gather = HierarchicalAllGather(collectives, shards.group, f"checkpoint/moments/{shards.group}")

    def entries(self) -> List[StateEntry]:
        """To be set: every rank is given all of a moment, and keeps its own stretch. They cannot be read."""
        return [
            entry
            for prefix, held in self._moments.items()
            for bucket, stretch in zip(self._shards.buckets, held)
            for entry in self._of_bucket(prefix, bucket, stretch)
        ]

    def gather(self, keep: bool) -> List[StateEntry]:
        """To be read; a bucket at a time, so that no more than one is whole on the device. Every rank of the group must
        call it; those that do not `keep` the moments get none.
        """
        found: List[StateEntry] = []
        for prefix, held in self._moments.items():
            for bucket, stretch in zip(self._shards.buckets, held):
                whole = (stretch if self._gather is None else self._gather(stretch)).asnumpy()
                found += self._of_bucket(prefix, bucket, stretch, whole) if keep else []
        return found

    def _of_bucket(
        self, prefix: str, bucket: Bucket, stretch: Parameter, whole: Optional[np.ndarray] = None
    ) -> List[StateEntry]:
        """An entry for each parameter of a bucket, of which this rank holds `stretch`; `whole`: what they are read
        from.
        """
        found, start = [], 0  # where a parameter begins in the bucket
        for parameter in self._shards.parameters[bucket.start : bucket.end]:
            get: Callable[[], np.ndarray] = _not_gathered
            if whole is not None:
                get = partial(np.reshape, whole[start : start + parameter.size], parameter.shape)
            set_own = partial(_set_stretch, stretch, bucket.stretch * self._shards.place, start)
            name = f"{prefix}{parameter.name}"
            found.append(StateEntry(name, tuple(parameter.shape), slice_of(parameter), get, set_own))
            start += parameter.size
        return found


def _set_stretch(held: Parameter, first: int, start: int, value: np.ndarray) -> None:
    """Sets what of `value`, whose numbers begin at `start` of the bucket, falls into the stretch `held`, which begins
    at `first`.
    """
    own, numbers = held.asnumpy().copy(), value.reshape(-1)
    low, high = max(start, first), min(start + numbers.size, first + own.size)
    if low < high:
        own[low - first : high - first] = numbers[low - start : high - start]
        held.set_data(Tensor(own))


def _not_gathered() -> np.ndarray:
    raise RuntimeError("a moment that is shared out over ranks is read by OptimizerState.gathered")


class OptimizerState:
    """Both moments of every parameter, wherever they are: in the compiled step, sharded over ranks, on the host.

    Args:
        update: the compiled update.
        collectives: of the job; gather what is shared out.
        host: what the compiled update leaves to the host, if anything.
    """

    def __init__(self, update: Update, collectives: Collectives, host: Optional[OffloadedExpertOptimizer]) -> None:
        topology, rank, adam = collectives.topology, collectives.rank, update.adam
        self._sharded: List[Tuple[ShardedMoments, bool]] = []
        start = 0
        for shards in update.exchange.shards:
            end = start + len(shards.buckets)
            moments = ShardedMoments(shards, adam.first[start:end], adam.second[start:end], collectives)
            writes = topology.edp_index(rank) == 0 and (shards.group == "edp" or topology.ep_index(rank) == 0)
            self._sharded.append((moments, writes))
            start = end
        self._own = parameter_entries([*adam.first[start:], *adam.second[start:]])
        self._own += host.moments if host is not None else []

    def entries(self) -> List[StateEntry]:
        """To be set; those that are not shared out can be read too."""
        return [*self._own, *(entry for moments, _ in self._sharded for entry in moments.entries())]

    def gathered(self) -> List[StateEntry]:
        """To be read, as far as this rank writes them. Every rank must call it."""
        return [*self._own, *(entry for moments, writes in self._sharded for entry in moments.gather(writes))]
