"""The link of a simulated node down for a while, or for good, in the middle of a job on two nodes.

`scripts/simulate_cluster.sh` makes the nodes; the link is node 1's eth0, taken down in that node's network. Needs
Linux, root, iproute2.
"""

import subprocess
import time
from pathlib import Path
from random import Random
from typing import Optional

from . import clock, job
from .ledger import Ledger, Outcome, draw

CASES = (("link down for 1 s", 1.0), ("link down for 10 s", 10.0), ("link down for good", None))
COUNT = len(CASES)
STEPS = job.LONGEST[2]
# seconds: runtime.collective_timeout; a lost packet is sent again after up to twice the time that the link was down
DEADLINE = 40
OPERATIONS = ("all_to_all", "all_reduce", "all_gather", "reduce_scatter", "hierarchical_all_reduce", "barrier")
SLACK = 40  # seconds from the deadline to the end of all processes


def run(folder: Path, ledger: Ledger, count: int, seed: int) -> None:
    for number in sorted(set(range(count)) - ledger.done("network")):
        kind, seconds = CASES[number % len(CASES)]
        try:
            ledger.note(one(folder, kind, seconds, number, draw("network", number, seed)))
        except clock.Stuck as stuck:
            ledger.note(Outcome("network", number, kind, False, False, False, 0.0, str(stuck)))


def one(folder: Path, kind: str, down: Optional[float], number: int, random: Random) -> Outcome:
    expected = job.reference(folder, 2, STEPS)
    run_folder = folder / "network" / f"{number}_{time.time_ns()}"
    run_folder.mkdir(parents=True)
    logs, arguments = (
        run_folder / "logs_of_nodes",
        job.words(
            job.make_config(folder),
            run_folder,
            2,
            STEPS,
            f"runtime.collective_timeout={DEADLINE}",
            "checkpoint.resume=auto",
        ),
    )
    scripts = job.ROOT / "scripts"
    cluster = [
        "bash",
        str(scripts / "simulate_cluster.sh"),
        "--nodes",
        "2",
        "--ranks-per-node",
        "1",
        "--keep-logs",
        str(logs),
        "--",
        "bash",
        str(scripts / "train_msrun.sh"),
        *arguments,
    ]
    with open(run_folder / "errors", "w") as errors:
        process = subprocess.Popen(cluster, cwd=folder, env=job.environment(), stdout=subprocess.DEVNULL, stderr=errors)
    step = random.randint(2, STEPS // 3)
    try:
        clock.wait(
            lambda: job.newest_step(run_folder) >= step or process.poll() is not None, f"step {step}", job.LIMIT, 0.005
        )
        time.sleep(random.uniform(0, 0.1))
        if process.poll() is not None:
            raise clock.NotTried(f"{kind}: the job ended before the link did, see {run_folder / 'errors'}")
        mark = f"LOCMOE_LOG_DIR={run_folder}/logs/launch_1/node_1"
        network = ["nsenter", f"--net=/proc/{job.processes_with(mark)[0]}/ns/net", "ip", "link", "set", "eth0"]
        subprocess.run([*network, "down"], check=True)
        started, reached = clock.now(), job.newest_step(run_folder)
        if down is not None:
            time.sleep(down)
            subprocess.run([*network, "up"], check=True)
            clock.wait(
                lambda: job.newest_step(run_folder) > reached + 1 or process.poll() is not None, "a further step", 300
            )
            seconds = clock.now() - started
        clock.wait(lambda: process.poll() is not None, "the end of the job", job.LIMIT if down else DEADLINE + SLACK)
        seconds = seconds if down else clock.now() - started
    finally:
        process.terminate()
        process.wait(60)
    left = job.processes_with(mark) + job.processes_with(mark[:-1] + "0")
    said = [line for line in (run_folder / "errors").read_text().splitlines() if "error" in line]
    differs = job.differing_step(run_folder, expected, STEPS if down else reached)
    error = said[0] if said else "no error"
    detail = f"after step {reached}; status {process.returncode}; {error}; {len(left)} processes left"
    if down is None:
        named = bool(said) and "rank 1" in said[0] and any(word in said[0] for word in OPERATIONS)
        whole = bool(job.whole_steps(run_folder))
        recovered = whole and not left and differs is None
        return Outcome(
            "network", number, kind, named and process.returncode == 1, recovered, not whole, seconds, detail
        )
    survived = process.returncode == 0 and differs is None
    return Outcome(
        "network", number, kind, survived or bool(said), survived and not left, differs is not None, seconds, detail
    )
