"""A disk that is full, and a folder that cannot be written to, when a checkpoint is due; then there is room again, and
the run continues.

A private mount namespace holds a small tmpfs, of which a file of ballast leaves a random part free; and bind mounts
that are made read-only (root is not stopped by modes). Needs Linux and root: the part runs itself again under `unshare
--mount`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

from . import clock, job
from .ledger import Ledger, Outcome, draw

KINDS = ("disk full", "disk full", "checkpoints' folder turns read-only", "run folder read-only")
COUNT = len(KINDS)
STEPS = job.LONGEST[1]
INSIDE = "FAULTS_MOUNT_NAMESPACE"
ROOM = 16 << 20  # bytes of the tmpfs
CHECKPOINTS = 2.8  # as many as may at most find room; three are there while the third is written


def run(folder: Path, ledger: Ledger, count: int, seed: int) -> None:
    todo = sorted(set(range(count)) - ledger.done("storage"))
    if todo and INSIDE not in os.environ:
        if os.geteuid():
            raise SystemExit("storage: not root; expected root, who may mount")
        expected = job.reference(folder, 1, STEPS)
        assert len(expected) >= STEPS
        subprocess.run(
            [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                sys.executable,
                sys.argv[0],
                "--only",
                "storage",
                "--count",
                str(count),
                "--seed",
                str(seed),
                "--folder",
                str(folder),
            ],
            env={**os.environ, INSIDE: "1"},
            check=False,
        )
        return
    for number in todo:
        kind = KINDS[number % len(KINDS)]
        mounted = folder / "storage" / str(number)
        shutil.rmtree(mounted, ignore_errors=True)
        mounted.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(mounted)], check=True)
        try:
            ledger.note(one(folder, mounted, kind, number, draw("storage", number, seed)))
        except clock.Stuck as stuck:
            ledger.note(Outcome("storage", number, kind, False, False, False, 0.0, str(stuck)))
        finally:
            subprocess.run(["umount", "--recursive", str(mounted)], check=True)


def one(folder: Path, mounted: Path, kind: str, number: int, random: Random) -> Outcome:
    run_folder, asynchronous = mounted / "run", random.random() < 0.5
    arguments = job.words(
        folder / "config.yaml",
        run_folder,
        1,
        STEPS,
        "checkpoint.resume=auto",
        f"checkpoint.asynchronous={str(asynchronous).lower()}",
    )
    started = clock.now()
    detail, status, errors = FAULTS[kind](mounted, run_folder, arguments, folder, random)
    seconds = clock.now() - started
    line = [line for line in errors.splitlines() if "error" in line]
    # One line that says what; status 0 only where there was room for everything.
    told = (
        len(line) == 1
        and "Traceback" not in errors
        and any(word in line[0].lower() for word in ("no space", "read-only"))
    )
    before = job.whole_steps(run_folder)
    damaged = len(before) != len([path for path in (run_folder / "checkpoints").glob("step_*") if path.suffix == ""])
    again = subprocess.run(job.alone(arguments), cwd=folder, env=job.environment(), capture_output=True, text=True)
    step = job.differing_step(run_folder, job.reference(folder, 1, STEPS), STEPS)
    newest = max(job.whole_steps(run_folder), default=0)
    detail += f"; status {status}: {line[0] if line else 'nothing said'}; whole then: {before}"
    detail += f"; resumed with status {again.returncode}"
    if step is not None:
        detail += f"; step {step} differs: {again.stderr[-300:]}"
    return Outcome(
        "storage",
        number,
        kind,
        status in (1, 2) and told,
        again.returncode == 0 and step is None and newest == STEPS,
        damaged or newest < max(before, default=0),
        seconds,
        detail,
    )


def fill(mounted: Path, run_folder: Path, arguments: list[str], folder: Path, random: Random) -> tuple[str, int, str]:
    """Room for some of the checkpoints, the last of them in part."""
    whole = folder / "undisturbed_1" / "checkpoints" / f"step_{job.newest_step(folder / 'undisturbed_1')}"
    size = sum(path.stat().st_size for path in whole.iterdir())
    free = int(random.uniform(0.1, CHECKPOINTS) * size) + (16 << 10)
    with open(mounted / "ballast", "wb") as file:
        file.write(bytes(ROOM - free))
    done = subprocess.run(job.alone(arguments), cwd=folder, env=job.environment(), capture_output=True, text=True)
    (mounted / "ballast").unlink()
    return f"{free} bytes free, a checkpoint has {size}", done.returncode, done.stderr


def make_read_only(path: Path) -> None:
    """A mount point, as soon as no file under it is open for writing."""
    clock.wait(
        lambda: subprocess.run(["mount", "-o", "remount,bind,ro", str(path)], capture_output=True).returncode == 0,
        "a moment in which nothing is written",
        60,
        0.002,
    )


def forbid_run_folder(
    mounted: Path, run_folder: Path, arguments: list[str], folder: Path, random: Random
) -> tuple[str, int, str]:
    run_folder.mkdir()
    subprocess.run(["mount", "--bind", str(run_folder), str(run_folder)], check=True)
    make_read_only(run_folder)
    done = subprocess.run(job.alone(arguments), cwd=folder, env=job.environment(), capture_output=True, text=True)
    subprocess.run(["umount", str(run_folder)], check=True)
    return "from the start", done.returncode, done.stderr


def forbid_checkpoints(
    mounted: Path, run_folder: Path, arguments: list[str], folder: Path, random: Random
) -> tuple[str, int, str]:
    """After a random step."""
    step, checkpoints = random.randint(job.INTERVAL, STEPS - job.INTERVAL), run_folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(checkpoints), str(checkpoints)], check=True)
    with open(mounted / "errors", "w+") as errors:
        process = subprocess.Popen(
            job.alone(arguments), cwd=folder, env=job.environment(), stdout=subprocess.DEVNULL, stderr=errors
        )
        clock.wait(
            lambda: job.newest_step(run_folder) >= step or process.poll() is not None, f"step {step}", job.LIMIT, 0.002
        )
        make_read_only(checkpoints)
        reached = job.newest_step(run_folder)
        clock.wait(lambda: process.poll() is not None, "the end of the job", job.LIMIT)
        errors.seek(0)
        said = errors.read()
    subprocess.run(["umount", str(checkpoints)], check=True)
    return f"after step {reached}", process.returncode, said


FAULTS = {
    "disk full": fill,
    "checkpoints' folder turns read-only": forbid_checkpoints,
    "run folder read-only": forbid_run_folder,
}
