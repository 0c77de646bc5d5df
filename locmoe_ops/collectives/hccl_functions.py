"""The functions of `mindspore.mint.distributed` that do in PyNative mode on Ascend what primitives do in graphs.

Each is called like its primitive, so that the Cells of `locmoe_ops.collectives.hccl`, gradients included, are the same
in both modes. MindSpore's functions write into a tensor that they are given, and have no gradient of their own. They
run on Ascend alone (MindSpore 2.10 has two of the five on CPU): called here by tests through stand-ins, not run on a
device.

HCCL forbids graphs and single operators in one communicator: a job is in one mode from its start to its end.

Shape legend: M numbers sent, P ranks of the group, n rows of a rank's part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from mindspore import Tensor, mint
from mindspore.mint import distributed


class ProcessGroup(NamedTuple):
    """A process group of MindSpore: its name, the ranks of the job that it is made of, and this rank's place."""

    name: str
    ranks: tuple[int, ...]
    place: int


def group_function(operation: str, group: ProcessGroup, root: int = 0, backward: bool = False) -> Callable[..., Any]:
    """The function that does `operation` in `group`, with the inputs and outputs of its primitive.

    Args:
        operation: a name of `locmoe_ops.collectives.registry.COLLECTIVES`.
        group: of this rank.
        root: of a broadcast, its place in the group.
        backward: an `all_to_all_v` goes the way back: its counts are those of the way there.
    """
    name, size = group.name, len(group.ranks)

    def all_to_all(x: Tensor) -> Tensor:
        received = mint.empty(x.shape, dtype=x.dtype)
        distributed.all_to_all_single(received, x.contiguous(), group=name)
        return received

    def all_to_all_v(x: Tensor, counts: Tensor) -> Tensor:  # (M,), <int64>[P, P] numbers from each rank to each
        counts_here = counts.asnumpy().T if backward else counts.asnumpy()  # waits for the device
        sent, arriving = counts_here[group.place].tolist(), counts_here[:, group.place].tolist()
        received = mint.empty((sum(arriving),), dtype=x.dtype)
        distributed.all_to_all_single(received, x[: sum(sent)].contiguous(), arriving, sent, group=name)
        return received

    def all_gather(x: Tensor) -> Tensor:
        whole = mint.empty((x.shape[0] * size, *x.shape[1:]), dtype=x.dtype)  # (P * n, ...)
        distributed.all_gather_into_tensor(whole, x.contiguous(), group=name)
        return whole

    def reduce_scatter(x: Tensor) -> Tensor:
        own = mint.empty((x.shape[0] // size, *x.shape[1:]), dtype=x.dtype)  # (n, ...)
        distributed.reduce_scatter_tensor(own, x.contiguous(), "sum", group=name)
        return own

    def all_reduce(x: Tensor) -> Tensor:
        total = x.contiguous().copy()  # summed in its place
        distributed.all_reduce(total, "sum", group=name)
        return total

    def broadcast(tensors: tuple[Tensor]) -> tuple[Tensor]:  # as its primitive takes and returns them
        shared = tensors[0].contiguous().copy()  # overwritten, but at the root
        distributed.broadcast(shared, group.ranks[root], group=name)
        return (shared,)

    functions = (all_to_all, all_to_all_v, all_gather, reduce_scatter, all_reduce, broadcast)
    return next(function for function in functions if function.__name__ == operation)


class AsyncFunction:
    """An all-to-all in two calls, `start` and `wait`. What was started first is waited for first.

    Args:
        group: of this rank.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group.name
        self._running: deque[tuple[Tensor, Tensor, Any]] = deque()  # input and output must live until the wait

    def start(self, x: Tensor) -> Tensor:
        """The handle for `wait` <- (P, ...), whose exchange has been started."""
        sent, received = x.contiguous(), mint.empty(x.shape, dtype=x.dtype)
        work = distributed.all_to_all_single(received, sent, group=self._group, async_op=True)
        self._running.append((sent, received, work))
        return mint.empty(x.shape, dtype=x.dtype)

    def wait(self, handle: Tensor) -> Tensor:
        """(P, ...), received <- the `handle` of the start."""
        _, received, work = self._running.popleft()
        work.wait()
        return received
