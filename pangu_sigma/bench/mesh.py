"""`pangu-sigma bench mesh`: all-to-all and all-reduce of the mesh between processes of this machine, beside plain
sockets, which show what the loopback allows, and beside gloo, where PyTorch is installed (extra `bench`).

All of them move equal arrays in turn, in another order each round. A call's time is that of its slowest rank; its
processor time that of all ranks, in all of their threads, over the bytes that they send.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import socket
import time
from contextlib import ExitStack, closing
from datetime import timedelta
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Protocol, Sequence, Tuple

import numpy as np

from locmoe_ops.collectives.tcp.mesh import Mesh, join_mesh
from locmoe_ops.errors import CollectiveError, InputError
from pangu_sigma.runtime.text_table import TableColumn, text_table

LOOPBACK = "127.0.0.1"
OPERATIONS = ("all_to_all", "all_reduce")
ROUNDS, WARM_UP = 9, 3
DEADLINE_S = 60.0  # of joining, and of any call
_SHORT = 1 << 20  # bytes that are moved several times in a measurement, so that the clock does not matter
_BUFFERED = 64 << 10  # bytes that the buffers of a plain connection hold in any case
_COLUMNS = (
    TableColumn("", "<"),
    TableColumn("ranks"),
    TableColumn("KB"),
    TableColumn("mesh\nms"),
    TableColumn("sockets\nms"),
    TableColumn("gloo\nms"),
    TableColumn("gloo /\nmesh"),
    TableColumn("mesh\nns/B"),
    TableColumn("gloo\nns/B"),
)


class Contender(Protocol):
    """Something that moves arrays between ranks."""

    name: str

    def all_to_all(self, array: np.ndarray) -> Any:
        """Slice i of `array` <float32>[P, n] goes to rank i."""

    def all_reduce(self, array: np.ndarray) -> Any:
        """The sum over ranks of `array` <float32>[P, n]."""


class OfMesh:
    """This project's mesh."""

    name = "mesh"

    def __init__(self, mesh: Mesh) -> None:
        self._mesh, self._ranks = mesh, range(mesh.world_size)

    def all_to_all(self, array: np.ndarray) -> np.ndarray:
        return self._mesh.all_to_all(self._ranks, "bench/all_to_all", array)

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        return self._mesh.all_reduce(self._ranks, "bench/all_reduce", array)


class PlainSockets:
    """Blocking sockets without tags or checks. What fits their buffers is sent before anything is read; of larger parts
    a thread a peer sends while this one reads. A sum is two exchanges, of which the first is added up.
    """

    name = "sockets"

    def __init__(self, peers: Sequence[Optional[socket.socket]], rank: int) -> None:
        self._peers, self._rank = peers, rank

    def all_to_all(self, array: np.ndarray) -> np.ndarray:
        found = np.empty_like(array)
        found[self._rank] = array[self._rank]
        others = [(place, peer) for place, peer in enumerate(self._peers) if peer is not None]
        senders = [Thread(target=peer.sendall, args=(memoryview(array[place]).cast("B"),)) for place, peer in others]
        buffered = array[0].nbytes <= _BUFFERED
        for sender in senders:
            if buffered:
                sender.run()
            else:
                sender.start()
        for place, peer in others:
            _receive(peer, memoryview(found[place]).cast("B"))
        for sender in [] if buffered else senders:
            sender.join()
        return found

    def all_reduce(self, array: np.ndarray) -> np.ndarray:
        share = self.all_to_all(array).sum(0)  # (n,) <- (P, n)
        return self.all_to_all(np.broadcast_to(share, array.shape).copy())


class Gloo:
    """PyTorch's process group on CPU. Its sum works in place."""

    name = "gloo"

    def __init__(self, rank: int, ranks: int, port: int) -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        import torch
        from torch import distributed

        torch.set_num_threads(1)
        distributed.init_process_group(
            "gloo",
            init_method=f"tcp://{LOOPBACK}:{port}",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=DEADLINE_S),
        )
        self._torch, self._distributed = torch, distributed

    def all_to_all(self, array: np.ndarray) -> Any:
        given = self._torch.from_numpy(array)
        found = self._torch.empty_like(given)
        self._distributed.all_to_all_single(found, given)
        return found.numpy()

    def all_reduce(self, array: np.ndarray) -> Any:
        whole = self._torch.from_numpy(array)
        self._distributed.all_reduce(whole)
        return whole.numpy()

    def close(self) -> None:
        self._distributed.destroy_process_group()


class Place(NamedTuple):
    """Of a rank: which one, of how many, the ports of mesh and gloo (0: it is not there), and the mesh's secret."""

    rank: int
    ranks: int
    port: int
    gloo_port: int
    secret: bytes


class CallTime(NamedTuple):
    """A contender's calls of one operation and size.

    Attributes:
        seconds: of a call, median over rounds of the slowest rank's. processor: of all ranks, seconds a call, likewise.
    """

    seconds: float
    processor: float


class MeshRow(NamedTuple):
    """A line of the table: `size` in bytes is that of each rank's array; `found` by contender's name."""

    operation: str
    ranks: int
    size: int
    found: dict[str, CallTime]

    @property
    def sent(self) -> int:
        """Bytes that all ranks send: all but their own parts, twice for a sum."""
        return self.size * (self.ranks - 1) * (2 if self.operation == "all_reduce" else 1)


def bench_mesh(ranks: Sequence[int], sizes: Sequence[int]) -> int:
    """Prints the table; returns 0.

    Args:
        ranks: numbers of processes, each measured by itself. sizes: bytes of each rank's array.

    Raises:
        InputError: a number of ranks is 1, or a size is not a multiple of 4 bytes for each of them.
        CollectiveError: a rank was lost, or did not answer in time.
    """
    check_sizes(ranks, sizes)
    gloo = find_spec("torch") is not None
    rows = [row for count in ranks for row in measure(count, sizes, gloo)]
    print("\n".join(text_table(_COLUMNS, [line_of(row) for row in rows])))
    print("\nsockets: plain ones, for the same bytes.  ns/B: processor time of all ranks")
    print(f"over the bytes that they send.  KB: of each rank.  Medians of {ROUNDS} rounds.")
    if not gloo:
        print("gloo comes with PyTorch, which is not installed: pip install '.[bench]'")
    return 0


def check_sizes(ranks: Sequence[int], sizes: Sequence[int]) -> None:
    """See `bench_mesh`."""
    for count in ranks:
        if count < 2:
            raise InputError(f"--ranks: found {count}, expected at least 2")
        for size in sizes:
            if size % (4 * count):
                raise InputError(
                    f"--sizes: {size} bytes are no whole float32 for each of {count} ranks; expected a multiple "
                    f"of {4 * count}"
                )


def line_of(row: MeshRow) -> List[str]:
    """As in the table."""
    mesh, gloo = row.found[OfMesh.name], row.found.get(Gloo.name)
    times = [row.found.get(name) for name in (OfMesh.name, PlainSockets.name, Gloo.name)]
    per_byte = [one and f"{one.processor / row.sent * 1e9:.2f}" or "-" for one in (mesh, gloo)]
    return [
        row.operation,
        str(row.ranks),
        f"{row.size // 1024:,}",
        *("-" if one is None else f"{one.seconds * 1e3:.3f}" for one in times),
        f"{gloo.seconds / mesh.seconds:.2f}" if gloo else "-",
        *per_byte,
    ]


def measure(ranks: int, sizes: Sequence[int], gloo: bool) -> List[MeshRow]:
    """Rows of a number of processes, which are started and ended for it.

    Raises CollectiveError: as `bench_mesh`.
    """
    spawn, secret = multiprocessing.get_context("spawn"), secrets.token_bytes(32)
    ports = free_ports(2)
    with ExitStack() as held:
        ends = []
        for rank in range(ranks):
            place = Place(rank, ranks, ports[0], ports[1] if gloo else 0, secret)
            mine, theirs = spawn.Pipe()
            process = spawn.Process(target=run_rank, args=(place, tuple(sizes), os.getpid(), theirs), daemon=True)
            process.start()
            theirs.close()
            held.callback(process.join, 5.0)
            held.callback(process.kill)
            ends.append(mine)
        found = [_answer(ends, rank) for rank in range(ranks)]
    rows = []
    for operation in OPERATIONS:
        for size in sizes:
            by_name = {}
            for name in found[0][operation, size]:
                spent = np.array([one[operation, size][name] for one in found])  # (P, rounds, 2)
                by_name[name] = CallTime(float(np.median(spent[..., 0].max(0))), float(np.median(spent[..., 1].sum(0))))
            rows.append(MeshRow(operation, ranks, size, by_name))
    return rows


def _answer(ends: Sequence[Connection], rank: int) -> Any:
    """What a rank has measured; a rank that ends without it ends the benchmark."""
    if not wait([ends[rank]], 20 * DEADLINE_S):
        raise CollectiveError(f"bench mesh: rank {rank} did not answer within {20 * DEADLINE_S:.0f} s")
    try:
        answer = ends[rank].recv()
    except EOFError:
        answer = "ended without an answer"
    if isinstance(answer, str):
        raise CollectiveError(f"bench mesh: rank {rank}: {answer}")
    return answer


def run_rank(place: Place, sizes: Sequence[int], parent: int, answer: Connection) -> None:
    """A rank's process: measures all that there is, and sends it, or in one line why it cannot."""
    try:
        with ExitStack() as held:
            contenders = [*_contenders(place, parent, held)]
            for one in contenders:
                check_contender(one, place.rank, place.ranks)
            answer.send({(o, s): _spent(contenders, place, o, s) for o in OPERATIONS for s in sizes})
    except (CollectiveError, InputError, OSError, RuntimeError) as error:
        answer.send(f"{type(error).__name__}: {error}".splitlines()[0])


def _contenders(place: Place, parent: int, held: ExitStack) -> Iterator[Contender]:
    root = (LOOPBACK, place.port)
    mesh = join_mesh(place.rank, place.ranks, root, place.secret, LOOPBACK, DEADLINE_S, DEADLINE_S, parent)
    held.enter_context(closing(mesh))
    yield OfMesh(mesh)
    peers = connect_plainly(mesh)
    for peer in peers:
        if peer is not None:
            held.enter_context(closing(peer))
    yield PlainSockets(peers, place.rank)
    if place.gloo_port:
        yield held.enter_context(closing(Gloo(place.rank, place.ranks, place.gloo_port)))


def check_contender(one: Contender, rank: int, ranks: int) -> None:
    """Raises CollectiveError: it brings other numbers than each rank's own, r + 1, or their sum."""
    own = np.full((ranks, 2), rank + 1, np.float32)
    expected = np.arange(1, ranks + 1, dtype=np.float32)
    for operation, wanted in (("all_to_all", expected[:, None]), ("all_reduce", expected.sum())):
        found = getattr(one, operation)(own.copy())
        if not np.array_equal(found, np.broadcast_to(wanted, own.shape)):
            raise CollectiveError(f"bench mesh: {operation} of {one.name} brought {found.tolist()}")


def connect_plainly(mesh: Mesh) -> List[Optional[socket.socket]]:
    """A connection to each rank but this one, by which blocking calls are given up after DEADLINE_S."""
    everybody = range(mesh.world_size)
    with socket.create_server((LOOPBACK, 0), backlog=mesh.world_size) as server:
        server.settimeout(DEADLINE_S)
        ports = mesh.all_gather(everybody, "bench/ports", np.array([server.getsockname()[1]], np.int64))
        peers: List[Optional[socket.socket]] = [None] * mesh.world_size
        for rank in range(mesh.rank):
            lower = socket.create_connection((LOOPBACK, int(ports[rank])), DEADLINE_S)
            lower.sendall(bytes([mesh.rank]))
            peers[rank] = lower
        for _ in range(mesh.rank + 1, mesh.world_size):
            peer, _address = server.accept()
            peer.settimeout(DEADLINE_S)
            peers[peer.recv(1)[0]] = peer
    for one in peers:
        if one is not None:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    mesh.barrier(everybody, "bench/connected")
    return peers


def _receive(peer: socket.socket, room: memoryview) -> None:
    done = 0
    while done < len(room):
        got = peer.recv_into(room[done:])
        if not got:
            raise CollectiveError("bench mesh: a plain connection was closed")
        done += got


def _spent(
    contenders: Sequence[Contender], place: Place, operation: str, size: int
) -> dict[str, List[Tuple[float, float]]]:
    """Seconds and processor seconds of a call, a pair a round, by contender's name."""
    array = np.ones((place.ranks, size // 4 // place.ranks), np.float32)
    calls = max(1, min(50, _SHORT // size))
    mesh = next(one for one in contenders if isinstance(one, OfMesh))
    found: dict[str, List[Tuple[float, float]]] = {one.name: [] for one in contenders}
    for number in range(-WARM_UP, ROUNDS):
        first = number % len(contenders)
        for one in (*contenders[first:], *contenders[:first]):
            function: Callable[[np.ndarray], Any] = getattr(one, operation)
            given = array.copy()
            mesh.all_to_all(np.zeros((place.ranks, 1), np.float32))  # all begin together
            clocks = time.perf_counter(), time.process_time()
            for _ in range(calls):
                function(given)
            if number >= 0:
                spent = (time.perf_counter() - clocks[0]) / calls, (time.process_time() - clocks[1]) / calls
                found[one.name].append(spent)
    return found


def free_ports(count: int) -> List[int]:
    """Ports of the loopback that nobody listens on now."""
    with ExitStack() as held:
        servers = [held.enter_context(socket.create_server((LOOPBACK, 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]
