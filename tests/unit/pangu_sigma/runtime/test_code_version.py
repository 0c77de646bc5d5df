"""A run's note of the code that made it: another one for every other text of the packages, the same for everything
else.
"""

import pytest

from pangu_sigma.runtime import code_version as module
from pangu_sigma.runtime.code_version import code_version


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "package"
    (folder / "inner").mkdir(parents=True)
    (folder / "one.py").write_text("a = 1\n")
    (folder / "inner" / "two.py").write_text("b = 2\n")
    monkeypatch.setattr(module, "PACKAGES", (folder,))
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
    assert [package.name for package in module.PACKAGES] == ["locmoe_ops", "pangu_sigma"]
    assert all((package / "__init__.py").is_file() for package in module.PACKAGES)
