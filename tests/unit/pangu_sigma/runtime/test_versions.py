"""What is installed, and what is said where it is not: one line with the command that installs it, never a traceback.

And a run's note of the code that made it: another one for every other text of the packages, the same for everything
else.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_sigma import __version__
from pangu_sigma.runtime import versions
from pangu_sigma.runtime.versions import REQUIREMENTS, code_version, missing_package, program_version

REPOSITORY = Path(__file__).resolve().parents[4]
# Python imports `sitecustomize` at start-up; this one hides packages as if they were not installed.
HIDE = """
import os, sys
from importlib import metadata
from importlib.abc import MetaPathFinder

hidden = os.environ["HIDDEN"].split()

class Hide(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
found = metadata.version
def version(name):
    if name in hidden:
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = version
"""


@pytest.fixture
def without(tmp_path):
    """`without(packages, *arguments)`: runs a command in a folder with a small configuration, where the packages are
    not installed.
    """
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("words " * 50)
    (tmp_path / "config.yaml").write_text("data: {path: data, prepare: {sources: {a: text}}}\n")

    def _run(packages, *arguments):
        path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
        return subprocess.run(
            [sys.executable, "-m", "pangu_sigma", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": path, "HIDDEN": packages},
        )

    return _run


def test_the_names_are_those_that_setup_requires():
    tree = ast.parse((REPOSITORY / "setup.py").read_text(encoding="utf-8"))
    (required,) = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "REQUIREMENTS"
    ]
    assert sorted(ast.literal_eval(required)) == sorted(REQUIREMENTS.values())


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("yaml", "config config.yaml"),
        ("yaml", "--help"),
        ("numpy", "plan config.yaml"),
        ("mindspore", "bench step config.yaml"),
        ("mindspore", "train config.yaml"),
        ("sentencepiece", "prepare config.yaml"),
        ("safetensors", "ckpt inherit config.yaml a b"),
    ],
)
def test_a_missing_package_is_one_line(without, package, command):
    done = without(package, *command.split())
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line == (
        f"pangu-sigma: error: the Python package {package} is not installed for {sys.executable}; expected it, as "
        f"pip install '{REQUIREMENTS[package]}' does"
    )


def test_without_mindspore_much_still_works(without):
    assert without("mindspore", "config", "config.yaml").returncode == 0
    assert without("mindspore", "plan", "config.yaml").returncode == 0


@pytest.mark.parametrize(("hidden", "mindspore"), [("", None), ("mindspore", "not installed")])
def test_version(without, hidden, mindspore):
    """MindSpore's own file of metadata says its version: a package that cannot even be imported is shown."""
    if mindspore is None:
        import mindspore as installed

        mindspore = installed.__version__
    done = without(hidden, "--version")
    python = ".".join(map(str, sys.version_info[:3]))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"pangu-sigma {__version__} (MindSpore {mindspore}, Python {python})\n"


def test_the_versions_are_one():
    assert f'__version__ = "{__version__}"' in (REPOSITORY / "pangu_sigma" / "__init__.py").read_text()
    assert program_version() == __version__
    assert __version__ not in (REPOSITORY / "setup.py").read_text()  # which reads it from there


@pytest.mark.parametrize(
    "error",
    [
        ImportError("cannot import name 'x' from 'numpy'", name="numpy"),
        ModuleNotFoundError("no", name="mindspore.new"),
        ModuleNotFoundError("no name"),
        ValueError("x"),
    ],
)
def test_other_errors_are_not_taken_for_a_missing_package(error):
    assert missing_package(error) is None


def test_a_package_that_setup_does_not_name_is_named():
    """What MindSpore itself needs, or a router of the user's own."""
    assert "package psutil is not installed" in missing_package(
        ModuleNotFoundError("No module named 'psutil'", name="psutil")
    )


# ---- code


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "package"
    (folder / "inner").mkdir(parents=True)
    (folder / "one.py").write_text("a = 1\n")
    (folder / "inner" / "two.py").write_text("b = 2\n")
    monkeypatch.setattr(versions, "PACKAGES", (folder,))
    return folder


def test_every_change_of_a_python_file_shows(package):
    seen = {code_version()}
    (package / "one.py").write_text("a = 1\nb = 2\n")
    seen.add(code_version())
    (package / "inner" / "two.py").write_text("")  # what was in one file is now in the other
    seen.add(code_version())
    (package / "one.py").rename(package / "three.py")
    seen.add(code_version())
    assert len(seen) == 4 and all(len(version) == 12 for version in seen)


def test_nothing_else_shows(package, tmp_path):
    before = code_version()
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "one.pyc").write_bytes(b"x")
    (package / "notes.yaml").write_text("a: 1")
    assert code_version() == before


def test_both_packages_count():
    assert [package.name for package in versions.PACKAGES] == ["locmoe_ops", "pangu_sigma"]
    assert all((package / "__init__.py").is_file() for package in versions.PACKAGES)
