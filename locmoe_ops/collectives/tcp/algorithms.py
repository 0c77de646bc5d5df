"""How each collective is done with point-to-point messages.

Each algorithm is a generator that posts sends and receives of its `array` on `op`, an `Operation`, and yields until
everything that it has posted to receive has arrived; what it returns is the result. The sums run in rank order on every
rank, so that all ranks hold the same bits. float16 is summed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

import numpy as np

# Below this many bytes two rounds of messages cost more than everybody summing everything.
SMALL_BYTES = 8192

Algorithm = Generator[None, None, np.ndarray]


def is_small(num_bytes: int) -> bool:
    """Whether an all-reduce of so many bytes takes one round, in which everybody sums everything."""
    return num_bytes <= SMALL_BYTES


def part_bounds(elements: int, size: int) -> list[int]:
    """Where the parts of a larger all-reduce begin and end, which are nearly equal: `size` + 1 places."""
    return [elements * i // size for i in range(size + 1)]


class MessageExchange(Protocol):
    """What an algorithm may do: `index` is this rank's place among `size` ranks."""

    index: int
    size: int

    def others(self) -> list[int]:
        """All indices but this rank's, starting behind it so that not all send to the same peer first."""

    def send(self, peer: int, array: np.ndarray) -> None:
        """Sends a C-contiguous array, which must stay as it is until the operation is done."""

    def receive(self, peer: int, array: np.ndarray) -> None:
        """Fills a C-contiguous array with what `peer` sends in this round."""


def all_to_all(op: MessageExchange, array: np.ndarray) -> Algorithm:
    """(P, ...) -> (P, ...)."""
    result = np.empty_like(array)
    for peer in op.others():
        op.receive(peer, result[peer : peer + 1])
    for peer in op.others():
        op.send(peer, array[peer : peer + 1])
    result[op.index] = array[op.index]
    yield
    return result


def all_to_all_v(
    op: MessageExchange, array: np.ndarray, send_counts: np.ndarray, receive_counts: np.ndarray, limit: int
) -> Algorithm:
    """(M, ...) -> (limit, ...); both ends know the sizes, so that a pair without rows sends nothing at all.

    Args:
        op: sends and receives.
        array: the first send_counts[0] rows are for the first rank, the next send_counts[1] for the second, and so on.
        send_counts, receive_counts: int (P,).
        limit: rows of the result.
    """
    result = np.zeros((limit,) + array.shape[1:], array.dtype)
    incoming, outgoing = (
        [rows[end - count : end] for count, end in zip(counts, np.cumsum(counts))]
        for rows, counts in ((result, receive_counts), (array, send_counts))
    )
    for peer in op.others():
        if len(incoming[peer]):
            op.receive(peer, incoming[peer])
    for peer in op.others():
        if len(outgoing[peer]):
            op.send(peer, outgoing[peer])
    incoming[op.index][...] = outgoing[op.index]
    yield
    return result


def all_gather(op: MessageExchange, array: np.ndarray) -> Algorithm:
    """(n, ...) -> (P * n, ...)."""
    result = _exchange_whole(op, array)
    yield
    return result.reshape((op.size * array.shape[0],) + array.shape[1:])


def reduce_scatter(op: MessageExchange, array: np.ndarray) -> Algorithm:
    """(P * n, ...) -> (n, ...)."""
    parts = array.reshape((op.size, array.size // op.size))
    received = _exchange_parts(op, parts, [len(parts[0])] * op.size)
    result = np.empty_like(parts[0])
    yield
    _sum_in_order(op, parts[op.index], received, result)
    return result.reshape((len(array) // op.size,) + array.shape[1:])


def all_reduce(op: MessageExchange, array: np.ndarray) -> Algorithm:
    """Any shape: one round for small arrays, else reduce-scatter and all-gather over nearly equal parts."""
    if is_small(array.nbytes):
        whole = _exchange_whole(op, array)
        total = np.empty_like(array)
        yield
        _sum_in_order(op, array, whole, total)
        return total
    flat = array.reshape(-1)
    bounds = part_bounds(flat.size, op.size)
    parts = [flat[start:end] for start, end in zip(bounds, bounds[1:])]
    received = _exchange_parts(op, parts, [len(part) for part in parts])
    result = np.empty_like(flat)
    pieces = [result[start:end] for start, end in zip(bounds, bounds[1:])]
    yield
    _sum_in_order(op, parts[op.index], received, pieces[op.index])
    for peer in op.others():
        op.receive(peer, pieces[peer])
    for peer in op.others():
        op.send(peer, pieces[op.index])
    yield
    return result.reshape(array.shape)


def broadcast(op: MessageExchange, array: np.ndarray, root: int) -> Algorithm:
    """Any shape; the `array` of index `root` of `op` everywhere."""
    result = np.empty_like(array)
    if op.index == root:
        for peer in op.others():
            op.send(peer, array)
        result[...] = array
    else:
        op.receive(root, result)
    yield
    return result


def reduce(op: MessageExchange, array: np.ndarray, root: int) -> Algorithm:
    """Any shape; the sum of every `array` at index `root` of `op`, zeros elsewhere."""
    if op.index != root:
        op.send(root, array)
        yield
        return np.zeros_like(array)
    received = np.empty((op.size,) + array.shape, array.dtype)
    for peer in op.others():
        op.receive(peer, received[peer : peer + 1])
    total = np.empty_like(array)
    yield
    _sum_in_order(op, array, received, total)
    return total


class _Members:
    """An exchange among `members`, indices of some of an operation's ranks, in their order."""

    def __init__(self, op: MessageExchange, members: Sequence[int]) -> None:
        self.index, self.size = members.index(op.index), len(members)
        self._op, self._members = op, members

    def others(self) -> list[int]:
        return [(self.index + step) % self.size for step in range(1, self.size)]

    def send(self, peer: int, array: np.ndarray) -> None:
        self._op.send(self._members[peer], array)

    def receive(self, peer: int, array: np.ndarray) -> None:
        self._op.receive(self._members[peer], array)


def hierarchical_all_reduce(
    op: MessageExchange, array: np.ndarray, node: Sequence[int], rail: Sequence[int]
) -> Algorithm:
    """(n,) -> (n,): the sum over a group, in which a number crosses between nodes once.

    Reduce-scatter inside the node, all-reduce along the rail, all-gather inside the node.

    Args:
        op: sends and receives in the whole group.
        array: (n,).
        node: indices of the ranks on this rank's node.
        rail: indices of those with this rank's place on every node.
    """
    inside, across = _Members(op, node), _Members(op, rail)
    rest = -array.size % inside.size
    part = yield from reduce_scatter(inside, np.concatenate((array, np.zeros(rest, array.dtype))) if rest else array)
    part = yield from all_reduce(across, part)
    whole = yield from all_gather(inside, part)
    return whole[: array.size]


def barrier(op: MessageExchange, array: np.ndarray) -> Algorithm:
    """An empty message from everybody to everybody."""
    _exchange_whole(op, array)
    yield
    return array


def _exchange_whole(op: MessageExchange, array: np.ndarray) -> np.ndarray:
    """Posts everybody's array to everybody; (P, ...), own part filled in."""
    result = np.empty((op.size,) + array.shape, array.dtype)
    for peer in op.others():
        op.receive(peer, result[peer : peer + 1])
    for peer in op.others():
        op.send(peer, array)
    result[op.index] = array
    return result


def _exchange_parts(op: MessageExchange, parts: np.ndarray | list[np.ndarray], sizes: list[int]) -> np.ndarray:
    """Posts part i to rank i; returns (P, own part) in which the own row is not filled."""
    received = np.empty((op.size, sizes[op.index]), parts[0].dtype)
    for peer in op.others():
        op.receive(peer, received[peer : peer + 1])
    for peer in op.others():
        op.send(peer, parts[peer])
    return received


def _sum_in_order(op: MessageExchange, own: np.ndarray, received: np.ndarray, out: np.ndarray) -> None:
    """Fills `out` with the sum of (P, ...) over ranks 0, 1, ... with `own` in this rank's row."""
    rows = [own if i == op.index else received[i] for i in range(op.size)]
    if own.dtype == np.float16:
        out[...] = sum(rows[1:], rows[0].astype(np.float32))
        return
    if op.size == 1:
        out[...] = own
        return
    np.add(rows[0], rows[1], out=out)
    for row in rows[2:]:
        np.add(out, row, out=out)
