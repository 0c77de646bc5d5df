"""Several jobs with one run folder, started and killed at random moments: the folder holds one history, and none that
ended well is lost.

The jobs are processes of their own and run the command; only the compiled step is left out. Each writes its number as
the norm of the gradient, so that every line of `metrics.jsonl` says who wrote it.
"""

import json
import multiprocessing
import os
import random
import socket
import sys
import time
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pangu_sigma.checkpoint.folders import finished
from pangu_sigma.cli.main import main
from pangu_sigma.train.engine import StepResult, TrainEngine

EXAMPLES = max(1, int(os.environ.get("FUZZ_EXAMPLES", 800)) // 200)
DEADLINE_S = 120.0
STEPS = 6
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["pangu_sigma.train.run", "pangu_sigma.cli.main"])


class Job(NamedTuple):
    resume: str  # null, auto, or a checkpoint of another run
    delay_s: float
    killed_after_s: Optional[float]
    host: str


def run_job(number: int, job: Job, folder: str, deadline: float) -> None:
    """A process: one job, whose steps take some time and say who made them."""
    chance = random.Random(number)

    def read(self, outputs):
        time.sleep(chance.random() * 0.02)
        return StepResult(self.statistics.unpack(np.ones(self.statistics.size)), float(number), 1.0, 0)

    TrainEngine.launch_step = lambda *_: None
    TrainEngine.read_step = read
    TrainEngine.evaluate = lambda self, batches: np.ones(self.statistics.size)
    socket.gethostname = lambda: job.host  # what the note in the lock says
    os.chdir(folder)
    sys.stdout = sys.stderr = open(f"{number}.log", "w")  # noqa: SIM115
    time.sleep(max(0.0, deadline + job.delay_s - time.monotonic()))
    os._exit(main(["train", "c.yaml", "--set", f"checkpoint.resume={job.resume}"]))


def write_config(folder: Path, data: Path, output: str) -> None:
    config = {
        "model": {"hidden_size": 8, "num_heads": 1, "dense_layers": 0, "sparse_layers": 1, "sequence_length": 32},
        "moe": {"num_experts": 2, "num_groups": 2, "router": {"type": "hash"}},
        "data": {"path": str(data)},
        "optimizer": {"warmup_steps": 1},
        "checkpoint": {"interval": 2},
        "train": {"steps": STEPS, "global_batch_size": 2, "eval_rows": 2, "cosines": False, "output_dir": output},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(config))


def play(folder: Path, jobs) -> list:
    """Runs the jobs; returns their exit statuses, negative if killed."""
    start = time.monotonic() + 0.2
    processes = [
        FORKED.Process(target=run_job, args=(number, job, str(folder), start)) for number, job in enumerate(jobs, 1)
    ]
    for process in processes:
        process.start()
    kills = sorted(
        (
            (start + job.delay_s + job.killed_after_s, process)
            for job, process in zip(jobs, processes)
            if job.killed_after_s is not None
        ),
        key=lambda kill: kill[0],
    )
    for moment, process in kills:
        process.join(max(0.0, moment - time.monotonic()))
        process.kill()
    for process in processes:
        process.join(DEADLINE_S)
        assert process.exitcode is not None, "a job did not end"
    return [process.exitcode for process in processes]


def check_history(folder: Path, jobs, statuses) -> None:
    run = folder / "run"
    logs = "\n".join(f"{path.name}: {path.read_text()}" for path in sorted(folder.glob("*.log")))
    assert all(status in (0, 2, -9) for status in statuses), logs
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    records = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    steps = [record["progress/step"] for record in records]
    writers = [int(record["optim/grad_norm"]) for record in records]
    blocks = [writer for place, writer in enumerate(writers) if place == 0 or writers[place - 1] != writer]
    assert steps == list(range(steps[0], steps[0] + len(steps))) if steps else True, (steps, logs)
    assert len(blocks) == len(set(blocks)), (writers, logs)  # nobody writes between another's lines
    for later in blocks[1:]:
        assert jobs[later - 1].resume == "auto", (writers, logs)
    assert not steps or steps[0] == (5 if jobs[blocks[0] - 1].resume == "../other/run/checkpoints/step_4" else 1), (
        steps,
        logs,
    )
    ended_well = [number for number, status in enumerate(statuses, 1) if status == 0]
    if ended_well:
        assert steps[-1] == STEPS and json.loads((run / "summary.json").read_text())["router"] == "hash", logs
        assert STEPS in [checkpoint.step for checkpoint in finished(run / "checkpoints")]
    for number in ended_well:
        assert number in writers or jobs[number - 1].resume == "auto", (writers, logs)  # that found the run finished
    for number, status in enumerate(statuses, 1):
        if status == 2:
            assert (
                "is in use by process" in (log := (folder / f"{number}.log").read_text())
                or "holds an earlier run" in log
                or "is no checkpoint of the run that train.output_dir" in log
            ), log


job = st.builds(
    Job,
    resume=st.sampled_from(["null", "auto", "auto", "../other/run/checkpoints/step_4"]),
    delay_s=st.floats(0.0, 1.2),
    killed_after_s=st.none() | st.floats(0.3, 1.5),
    host=st.sampled_from(["here", "far-node"]),
)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)  # made smaller, they take other turns
@given(jobs=st.lists(job, min_size=2, max_size=4))
def test_a_folder_holds_one_history_whoever_comes_and_goes(tiny_data, tmp_path_factory, jobs):
    root = tmp_path_factory.mktemp("jobs")
    for name in ("other", "here"):
        (root / name).mkdir()
        write_config(root / name, tiny_data, "run")
    assert play(root / "other", [Job("null", 0.0, None, "here")]) == [0], (root / "other" / "1.log").read_text()
    check_history(root / "here", jobs, play(root / "here", jobs))
    after = [Job("auto", 0.0, None, "here")]  # whatever was killed: the lock is free, and the run can be finished
    assert play(root / "here", after) == [0], (root / "here" / "1.log").read_text()
