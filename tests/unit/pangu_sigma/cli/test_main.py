"""The command line: what it starts, its exit statuses, and what it says under the launcher."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

from locmoe_ops.errors import CollectiveError, InputError
from pangu_sigma.bench.routing import BalancedRouting, SkewedRouting
from pangu_sigma.cli import main as cli
from pangu_sigma.config.load import to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime import reporting
from pangu_sigma.runtime.launch import CLUSTER_VARIABLES, RANK_VARIABLES


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("train: {steps: 5}\noptimizer: {warmup_steps: 1}\n")
    return str(path)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in (*RANK_VARIABLES, *CLUSTER_VARIABLES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def install(monkeypatch):
    """Puts a function where the command line imports it from; returns the list of configurations it was given."""

    def _install(path, outcome):
        module_name, _, name = path.rpartition(".")
        calls = []

        def stand_in(config, *options):
            calls.append((config, *options) if options else config)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        module = types.ModuleType(module_name)
        setattr(module, name, stand_in)
        monkeypatch.setitem(sys.modules, module_name, module)
        return calls

    return _install


@pytest.fixture
def as_rank(monkeypatch, tmp_path):
    """Pretends to be rank 3 of a job that the launcher started; returns its log folder."""
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    monkeypatch.setenv("RANK_ID", "3")
    monkeypatch.setenv("MS_WORKER_NUM", "4")
    monkeypatch.setenv("LOCMOE_LOG_DIR", str(tmp_path))
    monkeypatch.setenv("LOCMOE_JOB", "abc")
    monkeypatch.setattr(reporting, "_GRACE_S", 0.0)
    # The real one would tie the life of the test process to its parent's.
    monkeypatch.setattr(cli, "end_with_parent", lambda: None)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "path"),
    [
        (["prepare"], "pangu_sigma.data.prepare.prepare"),
        (["train"], "pangu_sigma.train.run.train"),
        (["bench", "step"], "pangu_sigma.bench.step.bench_step"),
        (["bench", "router"], "pangu_sigma.bench.router.bench_router"),
    ],
)
def test_a_command_gets_the_resolved_configuration(install, config_file, command, path):
    calls = install(path, 0)
    assert cli.main([*command, config_file, "--set", "train.seed=7", "--set", "train.log_interval=2"]) == 0
    (config,) = calls
    assert (config.train.steps, config.train.seed, config.train.log_interval) == (5, 7, 2)


@pytest.mark.parametrize(
    ("outcome", "status", "lines"),
    [
        (0, 0, []),
        (1, 1, []),
        (
            InputError("data: found nothing,\n expected data"),
            2,
            ["pangu-sigma: error: data: found nothing, expected data"],
        ),
        (CollectiveError("rank 1: lost rank 2"), 1, ["pangu-sigma: error: rank 1: lost rank 2"]),
        (KeyboardInterrupt(), 130, []),
    ],
)
def test_exit_status_and_what_stderr_says(install, config_file, capsys, outcome, status, lines):
    install("pangu_sigma.train.run.train", outcome)
    assert cli.main(["train", config_file]) == status
    assert capsys.readouterr().err.splitlines() == lines


def test_a_defect_shows_its_traceback(install, config_file, capsys):
    install("pangu_sigma.train.run.train", ZeroDivisionError("oh"))
    assert cli.main(["train", config_file]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("pangu-sigma: error: ZeroDivisionError: oh\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["bench", "step", "--help"],
        ["config", "x"],
        ["ckpt", "extract", "x", "y", "--domain", "z"],
    ],
)
def test_mindspore_is_not_imported_before_it_is_needed(arguments):
    """`--help` of any command, bad input."""
    program = (
        "import sys; from pangu_sigma.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "sys.exit('mindspore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True).returncode == 0


def test_what_needs_no_mindspore_runs_where_there_is_none(tmp_path):
    """Each of the commands that show or predict something, one after another in one process."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(to_dict(Config())))
    (run / "metrics.jsonl").write_text('{"progress/step": 1, "loss/total": 7.0}\n')
    commands = [
        ["config", "configs/quickstart.yaml", "--ranks", "4"],
        ["config", "--list"],
        ["launch", "configs/quickstart.yaml", "--dry-run"],
        ["plan", "configs/quickstart.yaml"],
        ["report", str(run)],
        ["watch", str(run)],
    ]
    program = (
        "import sys; sys.modules['mindspore'] = None\n"  # importing it fails
        "from pangu_sigma.cli.main import main\n"
        f"sys.exit(any([main(words) for words in {commands}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (run / "report.html").is_file()


@pytest.mark.parametrize(
    "arguments, unbuffered",
    [(["config", "config.yaml"], "1"), (["config", "config.yaml"], ""), (["plan", "--help"], "")],
)
def test_a_reader_that_has_seen_enough_is_no_error(config_file, arguments, unbuffered):
    process = subprocess.Popen(
        [sys.executable, "-m", "pangu_sigma", *arguments],
        cwd=Path(config_file).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    with process:
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


def test_config_prints_every_key_or_one(config_file, capsys):
    assert cli.main(["config", config_file]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["train"]["steps"] == 5
    assert {name: set(section) for name, section in shown.items()} == {
        name: set(section) for name, section in to_dict(Config()).items()
    }
    assert cli.main(["config", config_file, "--key", "train.output_dir", "--set", "train.output_dir=a b"]) == 0
    assert capsys.readouterr().out == "a b\n"


def test_a_rank_reports_to_the_launcher(install, config_file, as_rank, capsys):
    install("pangu_sigma.train.run.train", InputError("data: gone"))
    assert cli.main(["train", config_file]) == 2
    assert (as_rank / "errors.log").read_text() == "3\t2\tpangu-sigma: error: data: gone\n"
    assert (as_rank / "workers.log").read_text().startswith("3\t")
    assert capsys.readouterr().err == ""


def test_a_defect_of_a_rank_names_the_rank(install, config_file, as_rank, capsys):
    install("pangu_sigma.train.run.train", KeyError("oh"))
    assert cli.main(["train", config_file]) == 1
    assert (as_rank / "errors.log").read_text() == "3\t1\tpangu-sigma: error: rank 3: KeyError: 'oh'\n"
    assert "Traceback" in capsys.readouterr().err


def test_a_rank_that_cannot_reach_the_log_folder_speaks_for_itself(install, config_file, as_rank, monkeypatch, capsys):
    monkeypatch.setenv("LOCMOE_LOG_DIR", str(as_rank / "absent"))
    install("pangu_sigma.train.run.train", InputError("data: gone"))
    assert cli.main(["train", config_file]) == 2
    assert capsys.readouterr().err == "pangu-sigma: error: data: gone\n"


def test_the_scheduler_does_not_train(install, config_file, monkeypatch):
    calls = install("pangu_sigma.train.run.train", 1)
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    monkeypatch.setenv("LOCMOE_JOB", "abc")
    assert cli.main(["train", config_file, "--set", "runtime.backend=tcp"]) == 0
    assert cli.main(["train", config_file, "--set", "no.such.key=1"]) == 0
    assert calls == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ((), None, BalancedRouting())),
        (["--tokens", "64,8", "--rate", "200mbit"], ((64, 8), 200e6, BalancedRouting())),
        (["--rate", "5kbit", "--routing", "skewed:1.5"], ((), 5e3, SkewedRouting(1.5))),
    ],
)
def test_dispatchers_are_measured_by_the_ranks_of_a_job(install, config_file, as_rank, options, expected):
    calls = install("pangu_sigma.bench.all_to_all.bench_all_to_all", 0)
    assert cli.main(["bench", "all-to-all", config_file, *options]) == 0
    ((_, *found),) = calls
    assert tuple(found) == expected


def test_what_is_no_matter_of_ranks_does_not_run_under_msrun(config_file, as_rank):
    assert cli.main(["prepare", config_file]) == 2
    assert "prepare runs as one process" in (as_rank / "errors.log").read_text()


def test_leave_now_ends_a_busy_process():
    program = (
        "import threading, time\n"
        "from locmoe_ops.errors import CollectiveError\n"
        "from pangu_sigma.runtime.reporting import leave_now\n"
        "threading.Thread(target=leave_now, args=(CollectiveError('rank 0: lost rank 1'),)).start()\n"
        "time.sleep(600)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "pangu-sigma: error: rank 0: lost rank 1\n")
