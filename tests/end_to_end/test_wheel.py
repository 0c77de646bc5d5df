"""What a user gets who has no checkout: the source distribution is whole, a wheel is built from it, and works in an
environment of its own.

Nothing is downloaded: the new environment sees the packages of the running one, but not its copy of the project.
"""

import json
import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

import mindspore

from pangu_sigma import __version__
from pangu_sigma.runtime.resources import shipped_files

REPOSITORY = Path(__file__).resolve().parents[2]
LEFT = {
    ".git",
    ".venv",
    "build",
    "dist",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "runs",
    "data",
    "mine",
}
METRICS = [
    {"progress/step": step, "progress/tokens": 64 * step, "train/loss": 6.0 - step, "time/step(s)": 0.5}
    for step in (1, 2)
]


def source_files():
    """What the checkout holds, without what tools and commands leave there."""
    return {
        path.relative_to(REPOSITORY).as_posix()
        for top in REPOSITORY.iterdir()
        if top.name not in LEFT and top.suffix != ".egg-info"
        for path in (top, *top.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }


def build(kind, source, target):
    """Calls setuptools as pip and build do, in a process of its own."""
    program = (
        "import sys; from setuptools import build_meta; print(getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, kind, str(target)], cwd=source, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return target / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def distribution(tmp_path_factory):
    """The source distribution, of a copy of the checkout: building leaves files beside setup.py."""
    folder = tmp_path_factory.mktemp("build")
    for name in source_files():
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "checkout" / name).write_bytes((REPOSITORY / name).read_bytes())
    return build("sdist", folder / "checkout", folder)


@pytest.fixture(scope="module")
def environment(distribution, tmp_path_factory):
    """A new environment with the wheel of that distribution; returns its folder of programs."""
    folder = tmp_path_factory.mktemp("a b")
    with tarfile.open(distribution) as archive:
        archive.extractall(folder / "source")
    (source,) = (folder / "source").iterdir()
    wheel = build("wheel", source, folder)
    venv.create(folder / "env", with_pip=False, symlinks=True)
    programs = folder / "env" / "bin"
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "running.pth").write_text(
        str(Path(mindspore.__file__).parents[1]) + "\n"
    )  # its own .pth files are not read through it
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return programs


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Where the user is: a folder with a configuration and the start of a run."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "mine.yaml").write_text("moe: {num_experts: 4, num_groups: 2}\ntrain: {output_dir: run}\n")
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text((folder / "mine.yaml").read_text())
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in METRICS))
    return folder


@pytest.fixture
def run(environment, elsewhere):
    """`run("plan mine.yaml")`: a command of the new environment, which has nothing of this one's variables."""

    def _run(command, *words):
        program, *arguments = command.split()
        path = f"{environment}:/usr/local/bin:/usr/bin:/bin"
        done = subprocess.run(
            [program, *arguments, *words],
            cwd=elsewhere,
            capture_output=True,
            text=True,
            timeout=300,
            env={"PATH": path, "HOME": str(elsewhere), "VIRTUAL_ENV": str(environment.parent)},
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    return _run


def test_the_source_distribution_is_whole(distribution):
    with tarfile.open(distribution) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert source_files() - names == set()


def test_the_program_is_the_installed_one(run, environment):
    program = "import locmoe_ops, pangu_sigma; print(locmoe_ops.__file__); print(pangu_sigma.__file__)"
    for found in run("python -c", program).splitlines():
        assert Path(found).is_relative_to(environment.parent) and Path(found).with_name("py.typed").is_file()


def test_version(run):
    assert run("pangu-sigma --version").startswith(f"pangu-sigma {__version__} (MindSpore {mindspore.__version__}, ")


def test_metadata(run):
    program = (
        "from importlib.metadata import metadata, requires; "
        "print(metadata('pangu-sigma')); print(requires('pangu-sigma'))"
    )
    text = run("python -c", program)
    for line in (
        "License: Apache-2.0",
        "License-File: LICENSE",
        "Author: The PanGu-Sigma LocMoE developers",
        "scipy>=1.9",
        "Project-URL: LocMoE (paper), https://arxiv.org/abs/2401.13920",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("command", "fragment"),
    [
        ("pangu-sigma config mine.yaml --key moe.num_experts", "4"),
        (
            "pangu-sigma plan mine.yaml --hardware 910a --set runtime.precision=fp16",
            "910A",
        ),  # a file that comes with the program
        ("pangu-sigma report run", "report.html"),
        ("pangu-sigma launch mine.yaml --ranks-per-node 4 --dry-run", "-m pangu_sigma train mine.yaml"),
        ("pangu-sigma launch mine.yaml --supervise --help", "--max-restarts"),
        ("pangu-sigma config --list", "configs/quickstart.yaml"),
        ("python -m pangu_sigma --help", "usage: pangu-sigma"),
    ],
)
def test_commands_from_another_folder(run, command, fragment):
    assert fragment in run(command)


def test_examples_and_launchers(run, elsewhere):
    """Copied, they work as in a checkout, of which there is none."""
    run("pangu-sigma config --copy .")
    assert {name: (elsewhere / name).read_bytes() for name in shipped_files()} == {
        name: path.read_bytes() for name, path in shipped_files().items()
    }
    assert "hidden_size: 128" in run("pangu-sigma config configs/quickstart.yaml --ranks 4")
    assert "910B" in run("pangu-sigma plan configs/ascend/pangu_sigma_38b_128.yaml --nodes 16")
    shown = run("pangu-sigma compare configs/compare/smoke.yaml --dry-run")
    assert "pangu_sigma/shipped/scripts/train_msrun.sh" in shown
    launched = run("bash scripts/train_msrun.sh --ranks-per-node 4 configs/quickstart.yaml --dry-run")
    assert "-m pangu_sigma train configs/quickstart.yaml" in launched and "PYTHONPATH" not in launched
    assert "usage: bash scripts/quickstart.sh" in run("bash scripts/quickstart.sh --help")
    run(
        "bash scripts/simulate_cluster.sh --nodes 2 --ranks-per-node 2 --dry-run -- bash scripts/train_msrun.sh "
        "configs/quickstart.yaml"
    )


def test_without_the_program_a_copied_launcher_says_so(run, elsewhere):
    run("pangu-sigma config --copy other")
    done = subprocess.run(
        ["bash", "other/scripts/train_msrun.sh", "mine.yaml"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": f"{Path(os.path.realpath(sys.executable)).parent}:/usr/bin:/bin"},
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "has no pangu-sigma" in line
