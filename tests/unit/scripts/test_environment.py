"""The scripts find themselves however they are called, and whatever the caller's shell is like.

They run in a copy of their folder, with stand-ins for Python and msrun that note how they are called, and no
environment but the case's.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from pangu_sigma.cli.main import _parser

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
# What stands for which options of `pangu-sigma launch`.
LAUNCHERS = {
    "train_msrun.sh": "--launcher msrun",
    "train_rank_table.sh": "--launcher rank-table",
    "train_supervised.sh": "--supervise",
}
ENTRIES = (
    "quickstart.sh",
    "test.sh",
    *LAUNCHERS,
    "simulate_cluster.sh",
    "check_versions.sh",
)

PYTHON = """#!/bin/bash
printf '%s\\t%s\\n' "$PWD" "$*" >>"$CALLS"
case "$*" in
    *'--key data.path'*) echo data/prepared ;;
    *'--key train.steps'*) echo 200 ;;
    *'--key checkpoint.interval'*) echo 50 ;;
    *'pangu_sigma launch'*) printf 'PYTHONPATH=%s\\n' "$PYTHONPATH" ;;
    *'pangu_sigma config'*) echo settings ;;
    *pangu_sigma.data.samples*) mkdir -p data/samples/{en,zh,code} ;;
    *'pangu_sigma prepare'*) mkdir -p data/prepared && echo '{}' >data/prepared/manifest.json ;;
esac
"""
NOISY = """
echo from BASH_ENV
set -o noglob
shopt -s failglob
IFS=/
cd() { builtin cd "$@" && pwd; }
"""
# What the caller's shell may have exported; {project}, {elsewhere} and {noisy} are folders and a file of the test.
SHELLS = {
    "bare": {},
    "cdpath": {"CDPATH": ".:/tmp:{elsewhere}"},
    "bash_env": {"BASH_ENV": "{noisy}", "ENV": "{noisy}"},
    "options": {"SHELLOPTS": "braceexpand:nounset:noglob:hashall", "BASHOPTS": "nullglob:failglob:nocaseglob"},
    "posix": {"POSIXLY_CORRECT": "1", "GREP_OPTIONS": "--color=always"},
    "functions": {"BASH_FUNC_cd%%": '() {{ builtin cd "$@" && ls; }}', "BASH_FUNC_python%%": "() {{ echo no; }}"},
    "job": {
        "MS_ROLE": "MS_WORKER",
        "RANK_ID": "3",
        "RANK_TABLE_FILE": "/no/such.json",
        "LOCMOE_NODES": "2",
        "LOCMOE_PORT": "x",
    },
    "pip": {"PIP_USER": "1", "PYTHONPATH": "/other/checkout"},
}
FOLDERS = ("plain", "two words", "-dash", 'quote\'s "d"', "中文 目录", "br[ack]ets", "dollar$HOME")


@pytest.fixture
def project(tmp_path):
    """`project(name)`: a folder with the scripts and stand-ins for what they call."""

    def _make(name="plain"):
        folder = tmp_path / "at" / name
        shutil.copytree(SCRIPTS, folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "pangu_sigma").mkdir()
        (folder / "setup.py").touch()
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        for program, text in (("python", PYTHON), ("msrun", "#!/bin/bash\nexit 0\n")):
            (programs / program).write_text(text)
            (programs / program).chmod(0o755)
        return folder

    return _make


@pytest.fixture
def call(tmp_path):
    """`call(words, cwd, **variables)`: runs bash with an environment of its own; what it did, and the stand-in's calls
    as (folder, arguments)."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    noisy = tmp_path / "noisy.sh"
    noisy.write_text(NOISY)

    def _call(words, cwd=elsewhere, **variables):
        calls = tmp_path / "calls"
        calls.write_text("")
        given = {name: value.format(elsewhere=elsewhere, noisy=noisy) for name, value in variables.items()}
        done = subprocess.run(
            ["bash", *map(str, words)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "CALLS": str(calls), **given},
        )
        return done, [tuple(line.split("\t")) for line in calls.read_text().splitlines()]

    return _call


def check_quickstart(done, calls, folder):
    assert (done.returncode, done.stderr.replace("from BASH_ENV\n", "")) == (0, ""), done.stderr
    assert {called_in for called_in, _ in calls} == {str(folder)}
    (install,) = [words for _, words in calls if "pip install" in words]
    assert install.endswith("--editable .[cpu]")
    trained = [words for _, words in calls if "-m pangu_sigma launch --launcher msrun " in words]
    assert all("--ranks-per-node 2" in words for words in trained)
    routers = ["hash", "switch", "locmoe"]
    turns = [(100, routers), (150, routers[::-1]), (200, routers)]  # to and fro, each to a checkpoint
    expected = [[f"moe.router.type={router}", f"train.stop_after={step}"] for step, turn in turns for router in turn]
    assert [re.findall(r"moe.router.type=\w+|train.stop_after=\d+", words) for words in trained] == expected
    runs = [f"runs/quickstart/{router}" for router in routers]
    assert [words for _, words in calls][-3:] == [  # the table, the page, a text of each domain
        f"-m pangu_sigma summary {' '.join(runs)} --output runs/quickstart/summary.json",
        f"-m pangu_sigma report {' '.join(runs)} --output runs/quickstart/report.html",
        f"-m pangu_sigma generate {runs[-1]}/config.yaml --prompt-file runs/quickstart/prompts.jsonl "
        "--max-new-tokens 48",
    ]
    prompts = (folder / "runs/quickstart/prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["domain"] for line in prompts] == ["en", "code"]
    check_next(done.stdout.splitlines())


def check_next(lines):
    """The last lines are three commands, each one of the program's."""
    assert max(map(len, lines[-6:])) <= 79 and lines[-1] == "Your own text: docs/tutorial.md"
    commands = [shlex.split(line) for line in lines[-4:-1]]
    assert [words[:2] for words in commands] == [["pangu-sigma", what] for what in ("generate", "eval", "compare")]
    for _, *words in commands:
        _parser().parse_args(words)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_first_command_of_the_readme(project, call, shell):
    folder = project("中文 a b")
    done, calls = call(["scripts/quickstart.sh", "--steps", "2"], folder, **SHELLS[shell])
    check_quickstart(done, calls, folder)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_second_command_of_the_readme(project, call, shell):
    folder = project("中文 a b")
    done, calls = call(["scripts/test.sh", "tests/unit"], folder, **SHELLS[shell])
    assert done.returncode == 0, done.stderr
    assert [words for _, words in calls][1:] == ["-m ruff check .", "-m mypy", "-m pytest tests/unit"]
    assert {called_in for called_in, _ in calls} == {str(folder)}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_any_name(project, call, name):
    folder = project(name)
    done, calls = call(["--", f"{name}/scripts/quickstart.sh", "--steps=2"], folder.parent, CDPATH=".")
    check_quickstart(done, calls, folder)


@pytest.mark.parametrize("how", ["absolute", "relative", "link", "relative link", "chain", "linked folder", "inside"])
@pytest.mark.parametrize("entry", ["quickstart.sh", "train_msrun.sh"])
def test_calls_from_anywhere(project, call, tmp_path, how, entry):
    folder, elsewhere = project("a b"), tmp_path / "elsewhere"
    script, cwd, expected = folder / "scripts" / entry, elsewhere, folder
    if how == "relative":
        script = os.path.relpath(script, elsewhere)
    elif how == "inside":
        script, cwd = entry, script.parent
    elif how == "linked folder":
        (elsewhere / "project").symlink_to(folder)
        script, expected = (
            "project/scripts/" + entry,
            elsewhere / "project",
        )  # the name by which the caller, and other nodes, know it
    elif how != "absolute":
        target = script if how == "link" else os.path.relpath(script, elsewhere)
        (elsewhere / "other name").symlink_to(target)
        script = "other name"
        if how == "chain":
            (elsewhere / "again").symlink_to("other name")
            script = "./again"
    if entry == "quickstart.sh":
        done, calls = call([script, "--steps", "2"], cwd, CDPATH="..")
        check_quickstart(done, calls, expected)
    else:
        done, calls = call([script, "--dry-run", "x.yaml"], cwd, CDPATH="..")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"PYTHONPATH={expected}\n"
        assert [words for _, words in calls] == ["-m pangu_sigma launch --launcher msrun --dry-run x.yaml"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_script_answers_through_a_link(project, call, tmp_path, entry):
    folder = project()
    (tmp_path / "elsewhere" / "linked").symlink_to(folder / "scripts" / entry)
    done, calls = call(["linked", "--help"], CDPATH=".")
    assert (done.returncode, done.stderr) == (0, "")
    if entry in LAUNCHERS:  # it is the program that answers
        assert [words for _, words in calls] == [f"-m pangu_sigma launch {LAUNCHERS[entry]} --help"]
    else:
        assert done.stdout.startswith(f"usage: bash scripts/{entry}")


@pytest.mark.parametrize("there", [False, True])
def test_pip_shows_how_far_it_is_where_mindspore_is_to_be_downloaded(project, call, there):
    folder = project("a b")
    (folder / ".venv/lib/python3.11/site-packages" / ("mindspore" if there else "numpy")).mkdir(parents=True)
    done, calls = call(["scripts/quickstart.sh", "--steps", "2"], folder)
    check_quickstart(done, calls, folder)
    (install,) = [words for _, words in calls if "pip install" in words]
    assert ("--quiet" in install) == there


@pytest.mark.parametrize("preloaded", [None, "libc.so.6"])
def test_what_a_launcher_starts_has_the_allocator_of_the_environment(project, call, preloaded):
    """A library stands in for it; one that the user preloads stays the only one."""
    folder = project("中文 a b")
    library = folder / ".venv/lib/python3.11/site-packages/cmeel.prefix/lib/libmimalloc.so"
    library.parent.mkdir(parents=True)
    (loaded,) = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libm.so" in line}
    shutil.copy(loaded, library)
    script = folder / "scripts" / "show.sh"
    script.write_text('source "${BASH_SOURCE[0]%/*}/environment.sh"\nuse_environment\ncat /proc/self/maps\n')
    done, _ = call([script], **({"LD_PRELOAD": preloaded} if preloaded else {}))
    assert (done.returncode, done.stderr) == (0, "")
    assert (str(library) in done.stdout) == (preloaded is None)


def test_an_environment_by_a_relative_name(project, call):
    folder = project()
    shutil.move(folder / ".venv", folder / "env")
    done, calls = call(["scripts/quickstart.sh", "--steps", "2"], folder, VIRTUAL_ENV="env")
    check_quickstart(done, calls, folder)


@pytest.mark.parametrize(
    ("name", "variables", "fragment"),
    [
        (
            "plain",
            {"VIRTUAL_ENV": "/removed"},
            "VIRTUAL_ENV: found '/removed', which has no bin/python; expected an active virtual environment, or none "
            "(unset VIRTUAL_ENV)",
        ),
        ("a:b", {}, "expected a folder without ':'"),
    ],
)
@pytest.mark.parametrize("words", [["quickstart.sh"], ["test.sh"], ["train_msrun.sh", "x.yaml"]])
def test_what_cannot_work_is_said_before_anything_is_installed(project, call, name, variables, fragment, words):
    folder = project(name)
    done, calls = call([folder / "scripts" / words[0], *words[1:]], **variables)
    assert done.returncode == 2 and calls == []
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{words[0]}: error: ") and fragment in line


@pytest.mark.parametrize(
    ("script", "variables", "fragments"),
    [
        (
            "train_msrun.sh",
            {"RANK_TABLE_FILE": "/no/such.json"},
            ["RANK_TABLE_FILE: cannot read '/no/such.json'", "unset RANK_TABLE_FILE"],
        ),
        ("train_msrun.sh", {"LOCMOE_NODES": "2"}, ["--port: not given", "from the environment: LOCMOE_NODES=2"]),
        ("train_msrun.sh", {"LOCMOE_NODE_RANK": "3"}, ["--node-rank: found '3'", "LOCMOE_NODE_RANK=3"]),
        (
            "train_msrun.sh",
            {"LOCMOE_WORKERS_PER_NODE": "2"},
            ["LOCMOE_WORKERS_PER_NODE is called LOCMOE_RANKS_PER_NODE now"],
        ),
        (
            "train_msrun.sh",
            {"LOCMOE_NODE_ADDRESS": "10.0.0.1"},
            ["--node-addr: found '10.0.0.1'", "LOCMOE_NODE_ADDRESS=10.0.0.1"],
        ),
        (
            "train_rank_table.sh",
            {"RANK_TABLE_FILE": "/no/such.json"},
            ["/no/such.json", "the table is RANK_TABLE_FILE's"],
        ),
    ],
)
def test_what_the_shell_has_left_over_is_named(run_script, config_file, script, variables, fragments):
    done = run_script(script, config_file, "--set", "runtime.device=cpu", "--dry-run", **variables)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and all(fragment in line for fragment in fragments), line


def test_what_the_shell_says_of_a_job_is_shown(run_script, config_file):
    """A default of the environment is meant by some and left over for others."""
    done = run_script(
        "train_msrun.sh", config_file, "--dry-run", LOCMOE_RANKS_PER_NODE="2", MS_ROLE="MS_WORKER", RANK_ID="7"
    )
    assert done.returncode == 0 and "--worker_num=2" in done.stdout, done.stderr
    assert "from the environment: LOCMOE_RANKS_PER_NODE=2" in done.stdout


@pytest.mark.parametrize("earlier", [False, True])
def test_a_refusal_leaves_no_log_folder(run_script, config_file, tmp_path, earlier):
    """Ranks that find bad input before they have shown anything; what was there before stays."""
    if earlier:
        (tmp_path / "run" / "logs").mkdir(parents=True)
        (tmp_path / "run" / "logs" / "note.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    done = run_script("train_msrun.sh", "--ranks-per-node", "2", config_file, stand_in="refused")
    assert done.returncode == 2 and "data: found nothing" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
