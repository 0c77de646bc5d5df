"""What comes with the program: where it is found in a checkout and in a wheel, and copies of it."""

from pathlib import Path

import pytest

from pangu_sigma.cli import main as cli
from pangu_sigma.runtime import resources
from pangu_sigma.runtime.resources import FOLDER, resource, shipped_files

REPOSITORY = Path(__file__).resolve().parents[4]


@pytest.fixture
def run(capsys):
    """Runs a command; its exit status, output and lines of stderr."""

    def _run(*arguments):
        status = cli.main(list(map(str, arguments)))
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()

    return _run


def test_in_a_checkout():
    assert resource("configs/hardware") == REPOSITORY / "configs" / "hardware"


def test_in_a_wheel(tmp_path, monkeypatch):
    """Other packages may have put folders of the same names beside this one: they are not looked at."""
    package = tmp_path / "site-packages" / "pangu_sigma"
    for folder in (package / FOLDER / "configs", package.parent / "configs"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(resources, "__file__", str(package / "runtime" / "resources.py"))
    assert resource("configs") == package / FOLDER / "configs"


def test_what_is_shipped():
    """All configurations; of the scripts what runs a job, and what that needs."""
    names = set(shipped_files())
    assert {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("configs/**/*.yaml")} <= names
    scripts = {name for name in names if name.startswith("scripts/")}
    assert {"scripts/train_msrun.sh", "scripts/quickstart.sh", "scripts/make_rank_table.py"} <= scripts
    for name in scripts:
        for other in REPOSITORY.glob("scripts/*.sh"):
            sourced = f'/{other.name}"' in (REPOSITORY / name).read_text(encoding="utf-8")
            assert not sourced or f"scripts/{other.name}" in names, f"{name} needs {other.name}"


def test_copies(run, tmp_path):
    for _ in range(2):  # the second time nothing is left to do
        status, output, errors = run("config", "--copy", tmp_path / "new" / "folder")
        assert (status, errors) == (0, []) and str(tmp_path / "new" / "folder" / "configs") in output
    for name, source in shipped_files().items():
        assert (tmp_path / "new" / "folder" / name).read_bytes() == source.read_bytes()


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text("mine")
    status, _, (line,) = run("config", "--copy", tmp_path)
    assert status == 2 and str(tmp_path / "configs" / "quickstart.yaml") in line
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["config"], "no configuration given; expected a YAML file or a run, or --list"),
        (["config", REPOSITORY / "configs" / "quickstart.yaml", "--list"], "--list, --copy and --schema stand alone"),
        (["config", "--list", "--copy", "x"], "--list, --copy and --schema stand alone"),
        (["config", "--copy", "x", "--set", "train.steps=1"], "--list, --copy and --schema stand alone"),
        (["config", "--copy", "/dev/null/x"], "expected a writable folder"),
    ],
)
def test_bad_input(run, arguments, fragment):
    status, output, (line,) = run(*arguments)
    assert (status, output) == (2, "") and fragment in line


def test_the_list(run):
    status, output, _ = run("config", "--list")
    named = [line.split()[0] for line in output.splitlines() if line.startswith("configs/")]
    assert status == 0 and named == sorted(
        path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("configs/**/*.yaml")
    )
    assert max(map(len, output.splitlines())) <= 79
