"""Messages: where they go, from which level and rank on, and what a log file holds."""

import ast
import logging
import os
import re
import resource
from pathlib import Path

import pytest

import pangu_sigma
from locmoe_ops.errors import InputError
from pangu_sigma.cli import main as cli
from pangu_sigma.runtime import messages
from pangu_sigma.runtime.messages import (
    LEVEL_VARIABLE,
    end_log,
    keep_log,
    log,
    log_levels,
    set_log_level,
    set_up_messages,
)
from pangu_sigma.runtime.reporting import announce

LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} rank 0 "


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    for name in ("MS_ROLE", "RANK_ID", "LOCMOE_LOG_DIR", LEVEL_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    yield
    monkeypatch.undo()
    set_up_messages("info")


@pytest.fixture
def as_rank(monkeypatch, tmp_path):
    """Makes this process rank `number` of a job whose logs are in the folder that is returned."""

    def _as(number):
        monkeypatch.setenv("MS_ROLE", "MS_WORKER")
        monkeypatch.setenv("RANK_ID", str(number))
        monkeypatch.setenv("LOCMOE_LOG_DIR", str(tmp_path))
        return tmp_path

    return _as


def speak():
    log.debug("in detail")
    log.info("as usual, %s", "中")
    log.warning("mind")


@pytest.mark.parametrize(
    ("level", "out", "err"),
    [
        ("debug", ["in detail", "as usual, 中"], ["pangu-sigma: warning: mind"]),
        ("info", ["as usual, 中"], ["pangu-sigma: warning: mind"]),
        ("warning", [], ["pangu-sigma: warning: mind"]),
        ("error", [], []),
    ],
)
@pytest.mark.parametrize("on_stdout", [True, False])
@pytest.mark.parametrize("by_variable", [True, False])
def test_levels_and_streams(level, out, err, on_stdout, by_variable, capsys, monkeypatch):
    if by_variable:
        monkeypatch.setenv(LEVEL_VARIABLE, level)
    set_up_messages(None if by_variable else level, on_stdout)
    speak()
    shown = capsys.readouterr()
    assert (shown.out.splitlines(), shown.err.splitlines()) == ((out, err) if on_stdout else ([], out + err))


def test_no_level_is_bad_input(monkeypatch):
    monkeypatch.setenv(LEVEL_VARIABLE, "loud")
    with pytest.raises(InputError, match=f"{LEVEL_VARIABLE}: found 'loud', expected one of debug, info, warning"):
        set_up_messages()


def test_every_command_takes_the_level_and_is_left_as_it_was(capsys, tmp_path):
    assert cli.main(["plan", str(tmp_path / "none.yaml"), "--log-level", "debug"]) == 2
    assert (log.level, messages.console.on_stdout) == (logging.INFO, True)
    assert cli.main(["train", "x.yaml", "--log-level", "loud"]) == 2
    assert "--log-level: invalid choice: 'loud'" in capsys.readouterr().err


@pytest.mark.parametrize("rank", [0, 3])
def test_ranks_but_the_first_keep_their_messages_to_their_logs(as_rank, rank, capsys):
    folder = as_rank(rank)
    set_up_messages("info")
    log.info("before")
    keep_log("unused")
    speak()
    shown = capsys.readouterr()
    assert [bool(shown.out), "rank 3: mind" in shown.err] == [rank == 0, rank == 3]
    lines = (folder / f"rank_{rank}.log").read_text().splitlines()
    assert [re.sub(r"^\S+ \S+ ", "", line) for line in lines] == [
        f"rank {rank} INFO before",
        f"rank {rank} INFO as usual, 中",
        f"rank {rank} WARNING mind",
    ]


def test_a_process_alone_has_a_folder_of_its_own_for_each_launch(tmp_path):
    """Nothing that is there is written to, whoever wrote it."""
    (tmp_path / "logs" / "launch_1").mkdir(parents=True)
    (tmp_path / "logs" / "launch_1" / "rank_0.log").write_text("of others")
    for number in (2, 3):
        keep_log(str(tmp_path))
        log.info("two\nlines")
        end_log()
        log.info("after")
        text = (tmp_path / "logs" / f"launch_{number}" / "rank_0.log").read_text()
        assert re.search(f"^{LINE}INFO two\nlines$", text, re.MULTILINE) and text.endswith("lines\n")
    assert (tmp_path / "logs" / "launch_1" / "rank_0.log").read_text() == "of others"


def test_text_that_is_none_in_utf_8_is_escaped(tmp_path, monkeypatch):
    """As a file's name in another encoding; the terminal's stream escapes it by itself (`make_streams_lenient`)."""
    with monkeypatch.context() as patch:
        patch.setattr(
            log, "handlers", [messages.log_file]
        )  # pytest's own keeps the text, and its workers cannot send it
        keep_log(str(tmp_path))
        log.info("caf\udce9")
    assert (tmp_path / "logs" / "launch_1" / "rank_0.log").read_text().endswith("INFO caf\\udce9\n")


def test_ranks_that_nobody_gave_a_folder_keep_no_log(as_rank, monkeypatch):
    folder = as_rank(1)
    monkeypatch.delenv("LOCMOE_LOG_DIR")
    keep_log(str(folder))
    assert not messages.log_file.is_kept and not list(folder.iterdir())


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path, capsys):
    (tmp_path / "logs").write_text("a file")
    keep_log(str(tmp_path))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pangu-sigma: warning: ") and "no log is kept" in line


def test_a_full_disk_ends_the_log_and_nothing_else(tmp_path, capsys):
    keep_log(str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        for _ in range(10):
            log.info("x" * 60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    shown = capsys.readouterr()
    assert shown.out.count("x" * 60) == 10 and "Traceback" not in shown.err
    assert shown.err.count("\n") == 1 and "the log ends here" in shown.err


@pytest.mark.parametrize(
    ("error", "traced"), [(InputError("data: gone"), False), (ZeroDivisionError("oh"), True)], ids=["input", "defect"]
)
def test_an_error_that_ends_the_program_is_in_its_log(tmp_path, error, traced, capsys):
    keep_log(str(tmp_path))
    announce(error)
    text = (tmp_path / "logs" / "launch_1" / "rank_0.log").read_text()
    assert re.match(f"{LINE}ERROR .*{error}\n", text) and ("ZeroDivisionError: oh" in text) == traced
    assert capsys.readouterr().err.endswith(f"{error}\n")


def test_an_error_without_a_log_makes_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    announce(InputError("data: gone"))
    assert os.listdir(tmp_path) == []


# Modules that print what a command was asked for. All else is a message.
PRINTS = {
    "audit.audit",
    "bench.all_to_all",
    "bench.decode",
    "bench.mesh",
    "bench.router",
    "bench.self_test",
    "bench.step",
    "checkpoint.surgery.difference",
    "checkpoint.surgery.export_map",
    "checkpoint.surgery.extract",
    "checkpoint.surgery.inherit",
    "checkpoint.surgery.inspect",
    "checkpoint.surgery.rewrite",
    "data.prepare",
    "data.samples",
    "doctor.doctor",
    "evaluation.evaluate",
    "inference.prompts",
    "report.runs",
    "report.summary",
    "report.terminal",
    "report.traces",
    "runtime.nodes",
    "runtime.reporting",
}
# Errors that end the program; the others' output is read by scripts, or they run before anything is set up.
PRINTS_ERRORS = {"__main__", "data.samples", "runtime.nodes", "runtime.reporting"}


def test_what_is_no_output_is_a_message():
    root = Path(pangu_sigma.__file__).parent
    printing, to_stderr, writing = set(), set(), set()
    for path in root.rglob("*.py"):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called == "print":
                printing.add(name)
                to_stderr.update([name] * any(ast.unparse(word.value) == "sys.stderr" for word in node.keywords))
            elif called in ("tqdm.write", "sys.stdout.write", "sys.stderr.write", "warnings.warn"):
                writing.add(name)
    # `launcher` stands in for a shell script: what it prints is its own.
    ours = {name for name in printing if not name.startswith(("cli.", "launcher", "launch"))}
    assert ours - {"__main__", *PRINTS} == set()
    assert {name for name in to_stderr if not name.startswith("launch")} <= PRINTS_ERRORS
    assert writing <= {"runtime.messages"}


@pytest.mark.parametrize(
    ("on_device", "expected"), [(False, {"GLOG_v": "3"}), (True, {"GLOG_v": "2", "MS_SUBMODULE_LOG_v": "{DEVICE:1}"})]
)
def test_what_is_set(monkeypatch, on_device, expected):
    for name in ("GLOG_v", "MS_SUBMODULE_LOG_v"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    set_log_level(on_device)
    assert {name: os.environ[name] for name in expected} == expected == dict(log_levels(on_device))
    monkeypatch.setenv("GLOG_v", "0")
    set_log_level(on_device)
    assert os.environ["GLOG_v"] == "0"
