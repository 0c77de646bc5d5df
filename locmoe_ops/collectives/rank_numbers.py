"""Every group exchanges rank numbers once, before anything is trained: a backend that does nothing, or returns zeros
without an error, must not go unnoticed (a third party has seen HCCL's all-to-all do so on Ascend 910A). And the graph
in which an exchange outside of a step runs, as this one does.

Shape legend: P ranks of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mindspore import Tensor, nn

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.collectives.registry import GRADIENTS, LAYERS
from locmoe_ops.errors import CollectiveError


class ExchangeGraph(nn.Cell):
    """An exchange that is called outside of a step, as a graph of its own: HCCL's documentation forbids operators by
    themselves in a group that graphs use too.

    Args:
        exchange: a collective's Cell.

    Input and output: those of `exchange`.
    """

    def __init__(self, exchange: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.exchange = exchange

    def construct(self, x: Any) -> Any:
        return self.exchange(x)


def check_rank_numbers(collectives: Collectives) -> None:
    """Exchanges numbers over each communicator that a Cell of `collectives` uses, by all-to-all where one of them does,
    else by all-gather. Every rank must call it, when it has made its Cells.

    Raises:
        CollectiveError: other numbers arrive than were sent; names the group and both.
    """
    exchanging = {(kind, why) for operation, kind, why in collectives.used if operation.startswith("all_to_all")}
    for kind, why in dict.fromkeys((kind, why) for _, kind, why in collectives.used):
        fault = group_fault(collectives, kind, "all_to_all" if (kind, why) in exchanging else "all_gather", why)
        if fault:
            raise CollectiveError(f"rank {collectives.rank}: {fault}; nothing can be trained over it")


def group_fault(collectives: Collectives, kind: str, operation: str, purpose: str = LAYERS) -> str:
    """Exchanges numbers in this rank's group of a kind; returns what is wrong with those that arrive, "" where nothing
    is. Every rank must call it.

    Args:
        collectives: of this rank.
        kind: of the group.
        operation: all_to_all or all_gather.
        purpose: of the communicator, see `locmoe_ops.collectives.registry.purpose_of`.
    """
    rank, world = collectives.rank, collectives.topology.world_size
    ranks, to_each = collectives.topology.group_of(kind, rank), operation == "all_to_all"
    tag = f"{'gradient/' if purpose == GRADIENTS else ''}start/{operation} {kind}"  # of that communicator
    cell = ExchangeGraph(getattr(collectives, operation)(kind, tag))
    # To the j-th rank of the group, or to all: (P, 1), or (1, 1)
    sent = np.array([[rank * world + j] for j in range(len(ranks) if to_each else 1)], np.int32)
    expected = [peer * world + (ranks.index(rank) if to_each else 0) for peer in ranks]
    fault = numbers_fault(cell(Tensor(sent)).asnumpy().reshape(-1).tolist(), expected)
    return fault and f"{operation} among the ranks {', '.join(map(str, ranks))} of group {kind} does not work: {fault}"


def numbers_fault(received: Sequence[int], expected: Sequence[int]) -> str:
    """What is wrong with the numbers that were `received`, of which the `expected` ones were sent; "" where nothing
    is.
    """
    if list(received) == list(expected):
        return ""
    return f"received {list(received)[:8]} where {list(expected)[:8]} were sent"
