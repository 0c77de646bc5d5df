"""The Dockerfile cannot be built here. What it names is looked up: versions, extras, files, commands, copies."""

import json
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
SETUP = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
INSTRUCTIONS = [
    line.split(None, 1) for line in re.sub(r"\\\n\s*", "", TEXT).splitlines() if line and not line.startswith("#")
]


def argument_of(instruction):
    return [argument for name, argument in INSTRUCTIONS if name == instruction]


def test_it_has_the_instructions_of_docker():
    assert INSTRUCTIONS[0][0] == "FROM"
    assert {name for name, _ in INSTRUCTIONS} <= {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "CMD"}


def test_the_python_is_one_that_the_project_admits():
    version = re.fullmatch(r"python:(\d+\.\d+)-slim", argument_of("FROM")[0])[1]
    assert f"Programming Language :: Python :: {version}" in SETUP


def test_the_extras_are_those_of_the_project():
    (extras,) = re.findall(r"pip install --editable '\.\[([\w,]+)\]'", TEXT)
    assert not [extra for extra in extras.split(",") if f'"{extra}": ' not in SETUP]


def test_the_command_is_there():
    command = json.loads(argument_of("CMD")[0])
    assert command[0] == "bash" and (REPOSITORY / command[1]).is_file()
    usage = subprocess.run([*command, "--help"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert usage.returncode == 0 and usage.stdout.startswith(f"usage: bash {command[1]}")


def test_the_environment_is_the_one_that_scripts_install_into():
    """Else the quickstart would make another, and install all of it again."""
    folder = re.search(r"VIRTUAL_ENV=(\S+) PATH=(\S+):\$PATH", argument_of("ENV")[0])
    assert folder[2] == f"{folder[1]}/bin" and f"python -m venv {folder[1]}" in argument_of("RUN")


def test_what_is_left_out_is_not_needed():
    """Nothing that is installed, or that the quickstart reads, is among it."""
    patterns = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split()
    needed = [REPOSITORY / name for name in ("setup.py", "pyproject.toml", "README.md")]
    for folder in ("pangu_sigma", "locmoe_ops", "configs", "scripts"):
        needed += [path for path in (REPOSITORY / folder).rglob("*.*") if "__pycache__" not in path.parts]
    for path in needed:
        inside = path.relative_to(REPOSITORY)
        for part in (inside, *inside.parents[:-1]):
            matching = [one for one in patterns if part.match(one) and ("/" in one or part.parent == Path("."))]
            assert not matching, f"{inside} is left out by {matching}"


def test_what_is_copied_can_be_installed():
    """setup.py finds what it reads, and names the project."""
    named = subprocess.run(
        [sys.executable, "setup.py", "--name"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert named.stdout.split()[-1] == "pangu-sigma"
