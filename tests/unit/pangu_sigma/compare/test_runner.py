"""Making a plan's runs: order, resuming, failures, no process left behind; a stand-in takes the launcher's place."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers.processes import is_running
from locmoe_ops.errors import InputError
from pangu_sigma.compare import runner
from pangu_sigma.compare.comparison import load_plan
from pangu_sigma.compare.runner import command_of, run_all
from pangu_sigma.errors import RunFailed
from pangu_sigma.report.comparison import folder_of
from pangu_sigma.runtime import processes

DEADLINE_S = 60.0
# As the real launcher it writes to the folder it is given, and says what is wrong in one line.
LAUNCHER = """
folder=$1 calls=$2 mode=$3
echo "$folder" >>"$calls"
case $mode in
    good) echo '{"router": "x"}' >"$folder/summary.json" ;;
    silent) ;;
    broken) echo '{"router": ' >"$folder/summary.json" ;;
    bad_input) echo 'noise' >&2; echo 'pangu-sigma: error: data: found nothing' >&2; echo 'more' >&2; exit 2 ;;
    diverged) echo '{"router": "x", "status": "diverged"}' >"$folder/summary.json"
        echo 'pangu-sigma: error: the run diverged at steps 3 to 12' >&2; exit 1 ;;
    crash) printf 'bar\\rlast words\\n' >&2; exit 3 ;;
    quiet) exit 7 ;;
    killed) kill -KILL $$ ;;
    orphan) setsid sleep 600 & echo $! >"$calls.child"; wait ;;
    slow) setsid sleep 600 & echo $! >"$calls.child"; trap '' TERM; sleep 600 & wait; wait ;;
esac
"""


@pytest.fixture
def launcher(tmp_path):
    """Takes the place of `command_of`; `mode` may be changed by run name. `calls` are the names of runs, as started."""
    (tmp_path / "launcher.sh").write_text(LAUNCHER)

    class _Launcher:
        modes = {}

        def __call__(self, run, base, folder):
            return [
                "bash",
                str(tmp_path / "launcher.sh"),
                str(folder),
                str(tmp_path / "calls"),
                self.modes.get(run.name, "good"),
            ]

        @property
        def calls(self):
            lines = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
            return [str(Path(line).relative_to(tmp_path / "out" / "runs")) for line in lines]

    return _Launcher()


def note_of(run, output):
    return json.loads((folder_of(output, run) / "run.json").read_text())


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "nothing happened within the deadline"
        time.sleep(0.05)


def test_runs_are_made_in_the_plans_order(make_plan, launcher, tmp_path, capsys):
    plan = make_plan(seeds=[1, 2])
    run_all(plan, tmp_path / "out", launcher)
    assert launcher.calls == ["all/hash/seed_1", "all/locmoe/seed_1", "all/locmoe/seed_2", "all/hash/seed_2"]
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "[1/4] all/hash/seed_1 ..."
    assert re.fullmatch(r"\[1/4\] all/hash/seed_1: \d+ s", shown[1])
    note = note_of(plan.runs[0], tmp_path / "out")
    assert (note["settings"], note["status"], note["error"]) == (plan.runs[0].settings, "finished", None)
    assert note["command"][:1] == ["bash"] and 0 <= note["seconds"] < DEADLINE_S


def test_finished_runs_are_not_made_again(make_plan, launcher, tmp_path, capsys):
    plan = make_plan()
    run_all(plan, tmp_path / "out", launcher)
    run_all(make_plan(seeds=[1, 2], run_timeout=99), tmp_path / "out", launcher)
    assert launcher.calls[2:] == ["all/locmoe/seed_2", "all/hash/seed_2"]
    assert "[1/4] all/hash/seed_1: finished earlier" in capsys.readouterr().out


def test_a_run_that_was_cut_off_is_made_anew(make_plan, launcher, tmp_path):
    """Cut off is what has no whole summary, or a note that says failed or nothing of these settings."""
    plan = make_plan()
    first, second = (folder_of(tmp_path / "out", run) for run in plan.runs)
    for folder, note, summary in (
        (first, {"settings": plan.runs[0].settings, "status": "running"}, '{"a": '),
        (second, {"settings": plan.runs[1].settings, "status": "failed"}, '{"a": 1}'),
    ):
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(note))
        (folder / "summary.json").write_text(summary)
        (folder / "metrics.jsonl").write_text("old")
    run_all(plan, tmp_path / "out", launcher)
    assert len(launcher.calls) == 2
    assert not (first / "metrics.jsonl").exists() and not (second / "metrics.jsonl").exists()
    kept = sorted((tmp_path / "out" / "earlier").rglob("metrics.jsonl"))
    assert [path.read_text() for path in kept] == ["old", "old"]


def test_whole_runs_of_other_settings_are_put_aside(make_plan, launcher, tmp_path, capsys):
    for steps in (10, 11, 12):
        run_all(make_plan(base_overrides={"train.steps": steps}), tmp_path / "out", launcher)
    assert len(launcher.calls) == 6
    kept = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out" / "earlier").rglob("summary.json")
    )
    assert kept == [
        f"earlier/all/{name}/seed_1/{number}/summary.json" for name in ("hash", "locmoe") for number in (1, 2)
    ]
    assert "all/hash/seed_1 was made with other settings; it is now in " in capsys.readouterr().out


def test_files_of_others_are_left_alone(make_plan, launcher, tmp_path):
    plan = make_plan()
    folder = folder_of(tmp_path / "out", plan.runs[0])
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("dear")
    with pytest.raises(InputError, match="holds files, but no run.json of a comparison; expected another folder"):
        run_all(plan, tmp_path / "out", launcher)
    assert (folder / "thesis.tex").read_text() == "dear" and launcher.calls == []


@pytest.mark.parametrize(
    ("mode", "status", "line"),
    [
        ("bad_input", 2, "data: found nothing"),
        ("crash", 3, "ended with status 3: last words, see "),
        ("quiet", 7, "ended with status 7, see "),
        ("killed", 1, "ended with signal 9, see "),
        ("silent", 1, "ended with status 0 but left no whole summary.json, see "),
        ("broken", 1, "ended with status 0 but left no whole summary.json, see "),
    ],
)
def test_a_failing_run_ends_the_comparison_with_its_status_and_line(make_plan, launcher, tmp_path, mode, status, line):
    plan = make_plan()
    launcher.modes = {"all/hash/seed_1": mode}
    with pytest.raises(RunFailed) as failure:
        run_all(plan, tmp_path / "out", launcher)
    assert failure.value.status == status
    assert str(failure.value).startswith(f"all/hash/seed_1: {line}")
    assert launcher.calls == ["all/hash/seed_1"]
    note = note_of(plan.runs[0], tmp_path / "out")
    assert note["status"] == "failed" and note["error"].startswith(line)
    launcher.modes = {}
    run_all(plan, tmp_path / "out", launcher)
    assert launcher.calls[1:] == ["all/hash/seed_1", "all/locmoe/seed_1"]


def test_a_run_that_takes_too_long_is_ended_with_all_its_processes(make_plan, launcher, tmp_path, monkeypatch):
    """This one has a child in a session of its own, and neither heeds a request to end."""
    monkeypatch.setattr(processes, "END_WAIT_S", 1.0)
    launcher.modes = {"all/hash/seed_1": "slow"}
    with pytest.raises(RunFailed, match=r"took longer than run_timeout \(2 s\) and was ended") as failure:
        run_all(make_plan(run_timeout=2), tmp_path / "out", launcher)
    assert failure.value.status == 1
    wait_until(lambda: not is_running(int((tmp_path / "calls.child").read_text())))


def test_one_comparison_at_a_time_in_a_folder(make_plan, launcher, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "END_WAIT_S", 1.0)
    monkeypatch.setattr(runner, "LOCK_WAIT_S", 0.3)
    launcher.modes = {"all/hash/seed_1": "slow"}
    plan = make_plan(run_timeout=4)
    ends = []

    def first():
        with pytest.raises(RunFailed):
            run_all(plan, tmp_path / "out", launcher)
        ends.append(time.monotonic())

    thread = threading.Thread(target=first)
    thread.start()
    wait_until(lambda: launcher.calls)
    with pytest.raises(
        InputError, match=r"--output: .*/out is in use by process \d+ on .* since .*; expected another folder"
    ):
        run_all(plan, tmp_path / "out", launcher)
    assert not ends and len(launcher.calls) == 1
    thread.join(DEADLINE_S)
    assert ends


PROGRAM = """
import sys
from pathlib import Path
from pangu_sigma.compare.comparison import load_plan
from pangu_sigma.compare.runner import run_all
plan, folder, script = sys.argv[1:]
def command(run, base, to):
    return ["bash", script, str(to), folder + "/calls", "orphan"]
run_all(load_plan(plan), Path(folder) / "out", command)
"""


def test_what_a_killed_comparison_leaves_ends_before_the_next_begins(write_plan, launcher, tmp_path):
    """Killed outright it ends nothing itself: Linux ends its launcher; what outlives that still holds the lock."""
    path, child = write_plan(), tmp_path / "calls.child"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, path, str(tmp_path), str(tmp_path / "launcher.sh")])
    try:
        wait_until(lambda: child.exists() and child.read_text().strip())
    finally:
        process.kill()
        process.wait()
    killer = threading.Timer(1.0, os.kill, (int(child.read_text()), signal.SIGKILL))
    killer.start()
    started = time.monotonic()
    run_all(load_plan(path), tmp_path / "out", launcher)
    assert time.monotonic() - started > 0.8
    assert launcher.calls == ["all/hash/seed_1", "all/hash/seed_1", "all/locmoe/seed_1"]
    killer.join()


def test_the_folder_must_be_writable(make_plan, launcher, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="--output: .*/out is a file; expected a folder"):
        run_all(make_plan(), tmp_path / "out", launcher)


def test_commands(make_plan, tmp_path):
    """One node: the launcher. Several: the simulated cluster around it, with this phase's rate."""
    plan = make_plan(cluster={"ranks_per_node": 2})
    folder = tmp_path / "a b"
    words = command_of(plan.runs[0], plan.base, folder)
    assert words[:2] == ["bash", str(runner.SCRIPTS / "train_msrun.sh")] and words[2:5] == [
        "--ranks-per-node",
        "2",
        plan.base,
    ]
    assert words[5:] == [
        "--set",
        "moe.router.type=hash",
        "--set",
        "train.seed=1",
        "--set",
        f'train.output_dir="{folder}"',
    ]
    plan = make_plan(
        cluster={"nodes": 2, "ranks_per_node": 3, "rate": "200mbit", "pin": True},
        base_overrides={"train.global_batch_size": 6},
        phases={"quality": {"rate": None}, "time": {}},
    )
    quality, time_run = (command_of(run, plan.base, folder) for run in (plan.runs[0], plan.runs[2]))
    begin = ["bash", f"{runner.SCRIPTS}/simulate_cluster.sh", "--nodes", "2", "--ranks-per-node", "3"]
    end = [
        "--pin",
        "--counters",
        str(folder / "interfaces.json"),
        "--",
        "bash",
        f"{runner.SCRIPTS}/train_msrun.sh",
        plan.base,
    ]
    assert quality[: len(begin + end) + 2] == [*begin, *end, "--set", "parallel.ranks_per_node=3"]
    assert time_run[: len(begin + end) + 2] == [*begin, "--rate", "200mbit", *end]
    for script in ("train_msrun.sh", "simulate_cluster.sh"):
        assert (runner.SCRIPTS / script).is_file()


def test_a_run_that_diverged_is_a_result_and_the_others_go_on(make_plan, launcher, tmp_path, capsys):
    plan, output = make_plan(), tmp_path / "out"
    launcher.modes = {plan.runs[0].name: "diverged"}
    run_all(plan, output, launcher)
    assert launcher.calls == [run.name for run in plan.runs]
    note = note_of(plan.runs[0], output)
    assert (note["status"], note["error"]) == ("diverged", "the run diverged at steps 3 to 12")
    assert f"{plan.runs[0].name}: the run diverged at steps 3 to 12" in capsys.readouterr().out
    run_all(plan, output, launcher)  # it stands: made again it would diverge again
    assert len(launcher.calls) == len(plan.runs)
