"""`pangu-sigma doctor` as a whole: what it prints, in which form, and its exit status; on this machine and over ssh."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml

from locmoe_ops.errors import InputError
from pangu_sigma.cli import main as cli
from pangu_sigma.doctor import doctor as command
from pangu_sigma.doctor.findings import (
    FAILURE,
    OK,
    UNKNOWN,
    WARNING,
    Finding,
    failure,
    lines_of,
    not_applicable,
    ok,
    shown,
    summary_of,
    unknown,
    warning,
)
from pangu_sigma.doctor.machine import Machine, Ran, run_command
from pangu_sigma.runtime.text_table import display_width

LONG = "a long story of words " * 9
FINE = Ran(0, "", "")


@pytest.fixture
def machine(tmp_path):
    """A machine without devices, on which MindSpore works."""
    return Machine(root=tmp_path, environ={}, run=lambda command, seconds=0: FINE, clock=lambda: True)


def request(**changed):
    values = {
        "rank_table": None,
        "server": None,
        "nodes_file": None,
        "ranks": None,
        "port": None,
        "ssh_command": None,
        "env_file": None,
        "as_json": False,
        "words": (),
    }
    return command.DoctorOptions(**{**values, **changed})


# ---- lines


@pytest.mark.parametrize(
    "finding",
    [
        ok("disk", LONG),
        failure("table, devices", LONG, LONG),
        warning("10.0.0.1: MindSpore", LONG, LONG),
        unknown("CANN", "why", "fix"),
        not_applicable("clock", "one machine", LONG, LONG),
        ok("x", "a" * 30),
        ok("disk", "80.2 GB free in /\u6211\u7684/" + "\u5de5\u4f5c" * 40),
        warning(f"{'compute-rack-17-' * 6}host.example.org: clock skew", "1 s", "ntpd"),
    ],
)
@pytest.mark.parametrize("colour", [False, True])
def test_lines_fit_79_columns_and_keep_every_word(finding, colour):
    lines = [re.sub(r"\033\[\d+m", "", line) for line in lines_of(finding, colour)]
    assert max(map(display_width, lines)) <= 79
    words, letters = " ".join(lines).split(), "".join("".join(lines).split())
    for text in (finding.found, finding.fix):
        assert set(text.split()) <= set(words) or "".join(text.split()) in letters
    assert "".join(finding.subject.split()) in letters and words[0] == finding.level


def test_only_the_label_is_coloured():
    assert lines_of(ok("disk", "fine"), colour=True) == ["\033[32mok   \033[0mdisk         fine"]
    assert lines_of(failure("disk", "full", "make room"), colour=True) == [
        "\033[31mFAIL \033[0mdisk         full",
        " " * 18 + "-> make room",
    ]
    assert lines_of(unknown("disk", "why"), colour=False) == ["skip disk         not checked: why"]
    assert [lines_of(Finding(level, "a", "b"), True)[0][2:4] for level in (WARNING, UNKNOWN)] == ["33", "33"]


def test_the_summary_counts():
    findings = [ok("a", "b")] * 3 + [warning("a", "b", "c")] * 2 + [failure("a", "b", "c")] + [unknown("a", "b")] * 4
    assert summary_of(findings) == "3 ok, 2 to look at, 1 failed, 4 not checked"
    findings += [not_applicable("a", "no CONFIG", "b")] * 11
    counted = "3 ok, 2 to look at, 1 failed, 4 not checked; 11 do not apply"
    assert [summary_of(findings, verbose) for verbose in (False, True)] == [f"{counted} (--verbose)", counted]


def test_what_does_not_apply_is_one_line():
    """Whatever the order: for want of what, each once, after what was found."""
    some = [not_applicable("a", "no CONFIG", "x"), ok("b", "fine"), not_applicable("c", "one machine", "y")]
    some += [unknown("d", "z"), not_applicable("e", "no CONFIG", "w")]
    found = shown(some, verbose=False)
    assert [finding.subject for finding in found] == ["b", "d", "3 checks"]
    assert lines_of(found[-1], colour=False) == ["skip 3 checks     no CONFIG, one machine"]
    assert shown(some, verbose=True) == some and shown(some[1:2], verbose=False) == some[1:2]
    assert shown(some[:1], verbose=False)[0].subject == "1 check"


# ---- the command


def test_on_a_laptop_one_line_says_what_does_not_apply(machine, capsys):
    assert command.doctor(None, request(), machine) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 79 and len(lines) == 7
    (skipped,) = [line for line in lines if line.startswith(UNKNOWN)]
    assert skipped == "skip 12 checks    no Ascend device, no rank table, no CONFIG, one machine"
    assert lines[-1] == "4 ok, 0 to look at, 0 failed, 0 not checked; 12 do not apply (--verbose)"


def test_verbosely_it_says_of_each_check_why_it_does_not_apply(machine, capsys):
    assert command.doctor(None, request(verbose=True), machine) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 79 and "\033" not in "".join(lines)
    subjects = {
        line[5:18].strip(): line[:4].strip() for line in lines if line[:5].strip() in (OK, UNKNOWN, WARNING, FAILURE)
    }
    unchecked = {name for name, level in subjects.items() if level == UNKNOWN}
    assert unchecked >= {"devices", "driver", "CANN", "rank table", "names", "disk", "data"}
    assert {subjects["Python"], subjects["MindSpore"], subjects["HCCL"]} == {OK}


def test_a_failure_is_the_exit_status(machine, tmp_path, capsys):
    (tmp_path / "table.json").write_text("{}")
    assert command.doctor(None, request(rank_table=str(tmp_path / "table.json")), machine) == 1
    out = capsys.readouterr().out
    assert "FAIL rank table" in out and "has no version" in " ".join(out.split()) and "1 failed" in out


def test_json_has_the_same_findings(machine, capsys):
    assert command.doctor(None, request(as_json=True), machine) == 0
    found = json.loads(capsys.readouterr().out)
    findings = [Finding.from_dict(entry) for entry in found["findings"]]
    assert [finding.subject for finding in findings][:3] == ["Python", "NumPy", "MindSpore"] and found["time"] > 1e9
    applies = {entry["subject"]: entry["applies"] for entry in found["findings"]}
    assert applies["Python"] and not applies["clock"] and not applies["disk"]
    assert [finding.to_dict() for finding in findings] == found["findings"]


def test_a_job_on_several_nodes_is_asked_for_its_port(machine, tmp_path, capsys):
    """There the missing port is no matter of course."""
    (tmp_path / "hosts").write_text("10.254.254.1\n10.254.254.2\n")
    command.doctor(None, request(nodes_file=str(tmp_path / "hosts")), machine)
    out = capsys.readouterr().out
    assert "skip port         not checked: none is given" in out and "one machine" not in out


def test_an_unreadable_nodes_file_is_bad_input(machine, tmp_path):
    with pytest.raises(InputError, match="absent: cannot be read"):
        command.doctor(None, request(nodes_file=str(tmp_path / "absent")), machine)


def test_the_command_line_reaches_it(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(command, "doctor", lambda config, asked: calls.append((config, asked)) or 0)
    (tmp_path / "config.yaml").write_text("train: {steps: 7}\noptimizer: {warmup_steps: 1}\n")
    path = str(tmp_path / "config.yaml")
    assert (
        cli.main(
            [
                "doctor",
                path,
                "--set",
                "train.seed=3",
                "--ranks",
                "4",
                "--port",
                "2345",
                "--ssh",
                "--env-file",
                "set_env.sh",
            ]
        )
        == 0
    )
    assert cli.main(["doctor"]) == 0
    assert cli.main(["doctor", str(tmp_path / "absent.yaml")]) == 2
    (config, asked), (nothing, plain) = calls
    assert (config.train.steps, config.train.seed, nothing, plain.ssh_command) == (7, 3, None, None)
    assert asked == request(
        ranks=4,
        port=2345,
        ssh_command="ssh -o BatchMode=yes -o ConnectTimeout=10",
        env_file="set_env.sh",
        words=(path, "--set", "train.seed=3", "--ranks", "4", "--port", "2345"),
    )


# ---- over ssh, whose place a local shell takes


def test_other_nodes_are_looked_at_and_compared(tmp_path):
    """The whole program, on a file of two nodes whose names nothing resolves; both doctors are this one."""
    (tmp_path / "ssh").write_text(
        '#!/bin/sh\n[ "$1" = second.invalid ] && export HCCL_BUFFSIZE=100\ncd / && exec sh -c "$2"\n'
    )
    (tmp_path / "ssh").chmod(0o755)
    (tmp_path / "hosts").write_text("first.invalid\nsecond.invalid\n")
    (tmp_path / "env.sh").write_text("export HCCL_EXEC_TIMEOUT=99\n")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"path": "absent"}, "train": {"output_dir": "run"}}))
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("HCCL_")
    }  # importing MindSpore sets some
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pangu_sigma",
            "doctor",
            "config.yaml",
            "--nodes-file",
            "hosts",
            "--ssh",
            "--ssh-command",
            str(tmp_path / "ssh"),
            "--env-file",
            str(tmp_path / "env.sh"),
            "--json",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        env={**kept, "HCCL_EXEC_TIMEOUT": "99", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 1, done.stderr
    findings = {entry["subject"]: entry for entry in json.loads(done.stdout)["findings"]}
    for node in ("first.invalid", "second.invalid"):
        assert findings[node]["level"] == OK and "checks ok" in findings[node]["found"]
        assert (
            findings[f"{node}: data"]["level"] == FAILURE
            and "'absent' is no folder" in findings[f"{node}: data"]["found"]
        )
    assert findings["second.invalid: HCCL"]["found"] == "BUFFSIZE=100, EXEC_TIMEOUT=99; here EXEC_TIMEOUT=99"
    assert not {f"first.invalid: {subject}" for subject in ("HCCL", "MindSpore", "clock skew")} & set(findings)


# ---- the machine


def test_commands_that_fail_are_told_apart():
    assert run_command(["sh", "-c", "echo a; echo b >&2; exit 3"]) == Ran(3, "a\n", "b\n")
    assert run_command(["/no/such/program"]).status is None
    slow = run_command(["sleep", "60"], 0.1)
    assert slow.status is None and "within 0.1 s" in slow.errors


def test_files_and_devices_below_the_root(tmp_path):
    machine = Machine(root=tmp_path)
    (tmp_path / "dev").mkdir()
    for name in ("davinci0", "davinci10", "davinci2", "davinci_manager"):
        (tmp_path / "dev" / name).touch()
    (tmp_path / "info").write_text('Version=1.2\nname = "quoted"\nnothing\n')
    assert machine.devices == (0, 2, 10)
    assert machine.fields("/info") == {"Version": "1.2", "name": "quoted"}
    assert machine.read("/absent") is None and machine.fields("/absent") == {}
