"""`scripts/check_versions.sh`: which versions it would try, and how; nothing is installed."""

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path):
    """Runs the script without starting anything; returns its exit status, and the lines of stdout and stderr."""

    def _run(*arguments):
        command = [
            "bash",
            str(REPOSITORY / "scripts" / "check_versions.sh"),
            "--dry-run",
            "--folder",
            str(tmp_path / "kept"),
            *arguments,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
        return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()

    return _run


def test_the_oldest_and_the_newest_of_the_range(run):
    status, lines, errors = run()
    assert (status, errors) == (0, [])
    assert lines[0] == "== mindspore==2.7" and lines[4] == "== mindspore>=2.7,<2.11"
    assert "mindspore>=2.7,<2.11" in (REPOSITORY / "setup.py").read_text()
    assert lines[1].endswith("-m venv " + lines[2].split("/bin/python")[0] + " ")
    assert lines[2].endswith("mindspore==2.7 ") and lines[3].endswith("-m pytest tests/unit ")


def test_versions_and_tests_as_asked_for(run, tmp_path):
    _, lines, _ = run("--versions", "2.7.1.post1,2.10.0", "--", "tests/unit/locmoe_ops", "-x")
    assert [line for line in lines if line.startswith("==")] == ["== mindspore==2.7.1.post1", "== mindspore==2.10.0"]
    assert lines[-1].endswith("-m pytest tests/unit/locmoe_ops -x ")


def test_an_environment_that_is_there_is_used_again(run, tmp_path):
    python = tmp_path / "kept" / "mindspore__2.7.0" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    _, lines, _ = run("--versions", "2.7.0")
    assert "-m pip install" in lines[1] and not any("venv" in line.split(" -m ")[-1] for line in lines)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--versions", "new"], "--versions: found 'new'"),
        (["--versions"], "--versions needs a value"),
        (["tests"], "unknown argument tests"),
    ],
)
def test_wrong_arguments(run, arguments, fragment):
    status, lines, (error,) = run(*arguments)
    assert (status, lines) == (2, []) and error.startswith("check_versions.sh: error: ") and fragment in error
