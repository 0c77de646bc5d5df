"""Strangers at the mesh's ports: noise, half greetings, replays, connections that say nothing; while ranks join, and
while they train.

Ranks are started one by one, as msrun would: the first waits for the second, and meanwhile most of the strangers come,
to every port that it listens on; the rest come while both train, when nobody listens any more. Losses must be those of
the undisturbed run.
"""

import secrets
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path
from random import Random

import psutil

from . import clock, job
from .ledger import Ledger, Outcome, draw

COUNT = 10_000
STEPS = 12
JOINING = 0.8  # of the strangers come while ranks join
OPENING = struct.Struct("<8s4sII16s")


def packet(random: Random) -> bytes:
    """What a stranger says: nothing, noise, another protocol, or a greeting of the mesh with or without a made-up
    proof.
    """
    purpose, rank, size = (
        random.choice([b"join", b"pair"]),
        random.randrange(2**32),
        random.choice([2, random.randrange(2**32)]),
    )
    opening = OPENING.pack(b"locmesh1", purpose, rank, size, random.randbytes(16))
    return random.choice(
        [
            b"",
            random.randbytes(random.randint(1, 200)),
            random.randbytes(random.randint(200, 65536)),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(500),
            opening,
            opening[: random.randrange(36)],
            opening + random.randbytes(32),
            opening + bytes(32),
            opening + random.randbytes(32) + struct.pack("<I", 2**32 - 1) + b"{}",
        ]
    )


def listening_ports(pid: int) -> list[int]:
    """TCP ports on which a process listens."""
    own = [one for one in psutil.net_connections("tcp4") if one.pid == pid]
    return [one.laddr.port for one in own if one.status == psutil.CONN_LISTEN]


class Strangers:
    """Says packets to ports; keeps some connections open that say no more. Counts those that were taken and those that
    were refused.
    """

    def __init__(self, random: Random) -> None:
        self.random, self.taken, self.refused = random, 0, 0
        self._kept: list[socket.socket] = []

    def say(self, ports: list[int]) -> None:
        data = packet(self.random)
        try:
            sock = socket.create_connection(("127.0.0.1", self.random.choice(ports)), timeout=20)
        except OSError:
            self.refused += 1
            return
        self.taken += 1
        try:
            sock.sendall(data)
        except OSError:  # closed before all of it was said
            pass
        self._kept.append(sock)
        if len(self._kept) > 100:
            self._kept.pop(self.random.randrange(len(self._kept))).close()

    def close(self) -> None:
        for sock in self._kept:
            sock.close()


def start_rank(folder: Path, run_folder: Path, rank: int, port: int, secret: str) -> subprocess.Popen:
    environment = job.environment(
        MS_ROLE="MS_WORKER",
        RANK_ID=str(rank),
        MS_WORKER_NUM="2",
        MS_SCHED_HOST="127.0.0.1",
        LOCMOE_MESH_PORT=str(port),
        LOCMOE_MESH_SECRET=secret,
    )
    with open(run_folder / f"rank_{rank}.log", "w") as log:
        return subprocess.Popen(
            job.alone(job.words(folder / "config.yaml", run_folder, 2, STEPS, "checkpoint.resume=auto")),
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )


def run(folder: Path, ledger: Ledger, count: int, seed: int) -> None:
    if ledger.done("packets") or not count:
        return
    expected = job.reference(folder, 2, STEPS)
    run_folder = folder / "packets"
    shutil.rmtree(run_folder, ignore_errors=True)
    run_folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    secret, strangers, started = secrets.token_hex(32), Strangers(draw("packets", 0, seed)), clock.now()
    ranks = [start_rank(folder, run_folder, 0, port, secret)]
    stuck = ""
    try:
        clock.wait(lambda: port in listening_ports(ranks[0].pid), "rank 0 at its port", job.LIMIT)
        for _ in range(int(count * JOINING)):
            strangers.say([port])
        ranks.append(start_rank(folder, run_folder, 1, port, secret))
        ports = [port]
        while strangers.taken + strangers.refused < count or any(rank.poll() is None for rank in ranks):
            ports = sorted(
                {*ports, *(found for rank in ranks if rank.poll() is None for found in listening_ports(rank.pid))}
            )
            if strangers.taken + strangers.refused < count:
                strangers.say(ports)
            time.sleep(0.01 if strangers.taken + strangers.refused < count else 0.2)
            if clock.now() - started > job.LIMIT:
                raise clock.Stuck("the end of the job")
    except clock.Stuck as error:
        stuck = f"; stuck: {error}"
    finally:
        strangers.close()
        for rank in ranks:
            rank.kill()
            rank.wait()
    logged = [line for line in (run_folder / "rank_0.log").read_text().splitlines() if "connections refused" in line]
    differs = job.differing_step(run_folder, expected, STEPS)
    ended = [rank.returncode for rank in ranks]
    detail = (
        f"{count} packets: {strangers.taken} taken by an open port, {strangers.refused} refused by a closed one; "
        f"ranks ended with {ended}; logged: {logged[0] if logged else 'nothing'}{stuck}"
    )
    ledger.note(
        Outcome(
            "packets",
            0,
            f"{count:,} packets at the mesh's ports, in one job",
            bool(logged),
            ended == [0, 0] and differs is None,
            differs is not None,
            clock.now() - started,
            detail,
        )
    )
