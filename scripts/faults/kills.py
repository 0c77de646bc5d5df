"""SIGKILL for a worker or msrun under scripts/train_supervised.sh, at a random moment; often while a checkpoint is
being written.

A job takes KILLS_A_JOB kills, one an attempt, and then runs to its end. Its losses must be those of the run that
nothing happened to. On CPU msrun's scheduler process has nothing to do and ends at once; what stands for the job is
msrun itself, which is killed here.
"""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Callable

import psutil

from . import clock, job
from .ledger import Ledger, Outcome, draw

COUNT = 100
KILLS_A_JOB = 5
STEPS = job.LONGEST[2]  # more than the kills can use up
TARGETS = ("worker 0", "worker 1", "msrun")


@dataclass(frozen=True)
class Kill:
    """Where and when: after `steps` steps of the attempt and `delay` seconds; or, if `writing`, as soon as there is a
    checkpoint that is not whole yet, and `delay` seconds; or, with `steps` 0, `delay` seconds after the ranks have
    started.
    """

    target: str
    steps: int
    delay: float
    writing: bool

    @classmethod
    def draw(cls, random: Random) -> "Kill":
        target, moment = random.choice(TARGETS), random.random()
        if moment < 0.1:
            return cls(target, 0, random.uniform(0, 20), False)
        writing = moment < 0.6
        return cls(target, random.randint(1, 4), random.uniform(0, 0.01 if writing else 0.1), writing)


class SupervisedJob:
    """A job under the supervisor. A context manager that ends whatever is left of it."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.run, self.checkpoints = run, run / "checkpoints"
        arguments = job.words(job.make_config(folder), run, 2, STEPS, "checkpoint.keep_last=3")
        options = ("--max-restarts", "1000", "--back-off", "0")
        run.mkdir(parents=True)
        self.errors = run / "supervisor.log"
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                job.command("train_supervised.sh", 2, arguments, *options),
                cwd=folder,
                env=job.environment(),
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def __enter__(self) -> "SupervisedJob":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            time.sleep(0.5)
            self.process.terminate()
            self.process.wait(180)

    def log_folder(self, attempt: int) -> Path:
        return self.run / "logs" / f"launch_{attempt}"

    def wait(self, condition: Callable[[], object], what: str, poll: float = 0.05) -> None:
        def ended() -> bool:
            return self.process.poll() is not None

        clock.wait(lambda: condition() or ended(), what, job.LIMIT, poll)
        if ended():
            error = clock.Stuck if self.process.returncode else clock.NotTried
            raise error(f"{what}: the supervisor has ended with status {self.process.returncode}")

    def workers(self, attempt: int) -> dict[str, int]:
        path = self.log_folder(attempt) / "workers.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return {rank: int(pid) for rank, pid in (line.split("\t") for line in lines)}

    def pid_of(self, target: str, attempt: int) -> int:
        workers = self.workers(attempt)
        if target != "msrun":
            return workers[target.split()[1]]
        return psutil.Process(workers["0"]).ppid()

    def has_begun(self, attempt: int) -> bool:
        """True once the metrics hold no step that this attempt is to repeat."""
        log = self.log_folder(attempt) / "worker_0.log"
        return log.exists() and b"compiling the step" in log.read_bytes()

    def is_writing(self) -> bool:
        return any(
            name.endswith(".part") for name in (os.listdir(self.checkpoints) if self.checkpoints.exists() else [])
        )

    def await_moment(self, attempt: int, kill: Kill) -> int:
        """Returns when it is time to kill; gives the step of the attempt's start (0 if it is not known yet)."""
        self.wait(lambda: len(self.workers(attempt)) == 2, f"start of attempt {attempt}")
        if not kill.steps:
            time.sleep(kill.delay)
            return 0
        self.wait(lambda: self.has_begun(attempt), f"the header of attempt {attempt}")
        base = job.newest_step(self.run)
        self.wait(lambda: job.newest_step(self.run) >= base + kill.steps, f"step {base + kill.steps}", 0.002)
        if kill.writing:
            self.wait(self.is_writing, "a checkpoint that is being written", 0.0005)
        time.sleep(kill.delay)
        return base


def run(folder: Path, ledger: Ledger, count: int, seed: int) -> None:
    expected = None
    for first in range(0, count, KILLS_A_JOB):
        numbers = sorted(set(range(first, min(first + KILLS_A_JOB, count))) - ledger.done("kills"))
        if not numbers:
            continue
        expected = expected or job.reference(folder, 2, STEPS)
        run_folder = folder / "kills" / f"job_{first}"
        shutil.rmtree(run_folder, ignore_errors=True)
        seen: list[tuple[str, bool, bool, bool, float, str]] = []
        try:
            status = disturb(folder, run_folder, numbers, seed, seen)
        except clock.Stuck as stuck:  # the kill that it came of, or the end of the job
            number = numbers[min(len(seen), len(numbers) - 1)]
            ledger.note(
                Outcome(
                    "kills", number, "SIGKILL, after which the job did not resume", False, False, False, 0.0, str(stuck)
                )
            )
            continue
        step = job.differing_step(run_folder, expected, STEPS)
        equal = status == 0 and step is None and max(job.whole_steps(run_folder), default=0) == STEPS
        end = "losses equal to the end" if equal else f"job: status {status}, first step that differs {step}"
        ledger.note(
            *[
                Outcome(
                    "kills",
                    number,
                    kind,
                    detected,
                    recovered and equal,
                    lost or step is not None,
                    seconds,
                    f"{detail}; {end}",
                )
                for number, (kind, detected, recovered, lost, seconds, detail) in zip(numbers, seen)
            ]
        )


def disturb(
    folder: Path, run_folder: Path, numbers: list[int], seed: int, seen: list[tuple[str, bool, bool, bool, float, str]]
) -> int:
    """A job from start to end with these kills, one an attempt; adds to `seen` what came of each. Gives the
    supervisor's status.
    """
    with SupervisedJob(folder, run_folder) as supervised:
        for attempt, number in enumerate(numbers, 1):
            try:
                seen.append(one(supervised, attempt, number, draw("kills", number, seed)))
            except (
                ProcessLookupError
            ):  # the ranks had just reached the job's end: to be tried another time, with the kills after it
                break
        clock.wait(lambda: supervised.process.poll() is not None, "the end of the job", job.LIMIT)
        return supervised.process.returncode


def one(
    supervised: SupervisedJob, attempt: int, number: int, random: Random
) -> tuple[str, bool, bool, bool, float, str]:
    """Kills and waits until training resumes; (kind, detected, recovered, lost, seconds, detail)."""
    kill = Kill.draw(random)
    base = supervised.await_moment(attempt, kill)
    before = max(job.whole_steps(supervised.run), default=0)
    step, pid = job.newest_step(supervised.run), supervised.pid_of(kill.target, attempt)
    os.kill(pid, signal.SIGKILL)
    started = clock.now()
    mark = f"LOCMOE_LOG_DIR={supervised.log_folder(attempt)}"
    supervised.wait(supervised.log_folder(attempt + 1).exists, "another attempt")
    left = job.processes_with(mark)
    restarted = clock.now() - started
    was_writing = supervised.is_writing()
    after = max(job.whole_steps(supervised.run), default=0)
    supervised.wait(lambda: supervised.has_begun(attempt + 1), "the next attempt's header")
    again = job.newest_step(supervised.run)
    supervised.wait(lambda: job.newest_step(supervised.run) > again, "a further step")
    detected = supervised.errors.read_text().count("the job ended with status") >= attempt
    lost = after < before or again < before or bool(left)
    detail = (
        f"{kill.target} after step {step} of an attempt from {base}, checkpoint {before} whole; "
        f"ended {restarted:.1f} s later, {len(left)} processes left; resumed from {again}"
    )
    moment = (
        "while a checkpoint is written"
        if was_writing
        else "while starting"
        if not kill.steps
        else "between checkpoints"
    )
    return f"SIGKILL of {kill.target.split()[0]} {moment}", detected, not left, lost, clock.now() - started, detail
