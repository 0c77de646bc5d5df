"""Where both moments of every parameter are, for checkpoints: to be set from whole arrays, and to be read as such."""

from typing import Iterator, List, Optional, Sequence, Tuple

import numpy as np

from mindspore import Parameter, Tensor

from locmoe_ops.collectives.interface import Collectives
from pangu_sigma.checkpoint.names import MOMENTS
from pangu_sigma.checkpoint.state_entry import Beside, Entry, Readable, Settable
from pangu_sigma.train.offloaded_experts import OffloadedExpertOptimizer
from pangu_sigma.train.sharding import Bucket, Gather, Shards
from pangu_sigma.train.step import Update


class Moment(Beside):
    """A moment of a parameter of which this rank holds what falls into its stretch of a bucket: it can be set, but not
    read.

    Args: held: the stretch, which begins with number `first` of the bucket. start: the parameter's first number in it.
    """

    def __init__(self, parameter: Parameter, prefix: str, held: Parameter, first: int, start: int) -> None:
        super().__init__(parameter, prefix)
        self._held, self._first, self._start = held, first, start

    def set_data(self, value: Tensor) -> None:
        """Every rank is given all of it, and keeps its own."""
        own, numbers = self._held.asnumpy().copy(), value.asnumpy().reshape(-1)
        low, high = max(self._start, self._first), min(self._start + numbers.size, self._first + own.size)
        if low < high:
            own[low - self._first : high - self._first] = numbers[low - self._start : high - self._start]
            self._held.set_data(Tensor(own))


class Gathered(Beside):
    """A moment, put together: it can be read, and no more."""

    def __init__(self, parameter: Parameter, prefix: str, whole: np.ndarray) -> None:
        super().__init__(parameter, prefix)
        self._whole = whole

    def asnumpy(self) -> np.ndarray:
        return self._whole


class SharedMoments:
    """The moments of parameters that a group's ranks share out.

    Args: first, second: of the buckets of `shards`.
    """

    def __init__(
        self, shards: Shards, first: Sequence[Parameter], second: Sequence[Parameter], collectives: Collectives
    ) -> None:
        self._shards = shards
        self._moments = dict(zip(MOMENTS, (first, second)))
        self._gather = Gather(collectives, shards.group, f"checkpoint/moments/{shards.group}")

    def entries(self) -> List[Moment]:
        """To be set."""
        return [
            Moment(parameter, prefix, held[number], bucket.stretch * self._shards.place, start)
            for prefix, held in self._moments.items()
            for number, bucket in enumerate(self._shards.buckets)
            for parameter, start in self._starts(bucket)
        ]

    def gather(self, keep: bool) -> List[Gathered]:
        """To be read; a bucket at a time, so that no more than one is whole on the device. Nothing where this rank does
        not `keep` them. Every rank of the group must call it.
        """
        found = []
        for prefix, held in self._moments.items():
            for bucket, stretch in zip(self._shards.buckets, held):
                whole = self._gather(stretch).asnumpy()
                found += [
                    Gathered(parameter, prefix, whole[start : start + parameter.size].reshape(parameter.shape))
                    for parameter, start in (self._starts(bucket) if keep else ())
                ]
        return found

    def _starts(self, bucket: Bucket) -> Iterator[Tuple[Parameter, int]]:
        """A bucket's parameters, and where each begins in it."""
        starts = np.cumsum((0, *bucket.sizes)).tolist()
        return zip(self._shards.parameters[bucket.start : bucket.end], starts)


class OptimizerState:
    """Both moments of every parameter, wherever they are: in the compiled step, shared out over ranks, on the host.

    Args: update: the compiled update. host: what it leaves to the host, if anything.
    """

    def __init__(self, update: Update, collectives: Collectives, host: Optional[OffloadedExpertOptimizer]) -> None:
        topology, rank, adam = collectives.topology, collectives.rank, update.adam
        self._shared: List[Tuple[SharedMoments, bool]] = []
        start = 0
        for shards in update.exchange.shards:
            end = start + len(shards.buckets)
            moments = SharedMoments(shards, adam.first[start:end], adam.second[start:end], collectives)
            writes = topology.edp_index(rank) == 0 and (shards.group == "edp" or topology.ep_index(rank) == 0)
            self._shared.append((moments, writes))
            start = end
        self._own: List[Entry] = [
            *adam.first[start:],
            *adam.second[start:],
            *(host.moments if host is not None else ()),
        ]

    def entries(self) -> List[Settable]:
        """To be set; those that are not shared out can be read too."""
        return [*self._own, *(entry for moments, _ in self._shared for entry in moments.entries())]

    def gathered(self) -> List[Readable]:
        """To be read, as far as this rank writes them. Every rank must call it."""
        return [*self._own, *(entry for moments, writes in self._shared for entry in moments.gather(writes))]
