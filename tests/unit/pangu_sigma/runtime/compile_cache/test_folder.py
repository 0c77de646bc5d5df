"""Which folder graphs are kept in: the configuration before the environment, and that before the user's home."""

import stat
from dataclasses import replace

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema_run import RuntimeConfig
from pangu_sigma.runtime.compile_cache.folder import VARIABLE, default_folder, open_store
from pangu_sigma.runtime.compile_cache.store import GraphStore
from pangu_sigma.runtime.messages import set_up_messages

ON_CPU = RuntimeConfig(device="cpu", backend="tcp")
BELOW = "pangu_sigma/graphs"
# The key, the environment, and the folder; every name is below a folder of the test's own, and None is none.
CASES = {
    "the user's folder of caches": ({}, {"XDG_CACHE_HOME": "/caches", "HOME": "/home"}, f"caches/{BELOW}"),
    "home": ({}, {"HOME": "/home"}, f"home/.cache/{BELOW}"),
    "a folder of caches that is relative": (
        {},
        {"XDG_CACHE_HOME": "caches", "HOME": "/home"},
        f"home/.cache/{BELOW}",
    ),
    "an empty one": ({}, {"XDG_CACHE_HOME": "", "HOME": "/home"}, f"home/.cache/{BELOW}"),
    "no home": ({}, {}, None),
    "an empty home": ({}, {"HOME": ""}, None),
    "a relative home": ({}, {"HOME": "home"}, None),
    "a home that is not there": ({}, {"HOME": "/absent"}, None),
    "a home that is a file": ({}, {"HOME": "/file"}, None),
    "caches below a file": ({}, {"XDG_CACHE_HOME": "/file/caches"}, None),
    "the environment": ({}, {VARIABLE: "/shell", "HOME": "/home"}, "shell"),
    "none by the environment": ({}, {VARIABLE: "none", "HOME": "/home"}, None),
    "auto by the environment": ({}, {VARIABLE: "auto", "HOME": "/home"}, f"home/.cache/{BELOW}"),
    "an empty variable": ({}, {VARIABLE: "", "HOME": "/home"}, f"home/.cache/{BELOW}"),
    "the key": ({"compile_cache": "/key"}, {VARIABLE: "/shell", "HOME": "/home"}, "key"),
    "the key against none": ({"compile_cache": "/key"}, {VARIABLE: "none", "HOME": "/home"}, "key"),
    "none by the key": ({"compile_cache": "none"}, {VARIABLE: "/shell", "HOME": "/home"}, None),
    "null": ({"compile_cache": None}, {VARIABLE: "/shell", "HOME": "/home"}, None),
    "pynative": ({"mode": "pynative"}, {"HOME": "/home"}, None),
    "pynative, and the environment": ({"mode": "pynative"}, {VARIABLE: "/shell", "HOME": "/home"}, None),
    "Ascend": ({"device": "ascend", "backend": "hccl"}, {"HOME": "/home"}, None),
    "Ascend, and the environment": ({"device": "ascend", "backend": "hccl"}, {VARIABLE: "/shell"}, None),
}


@pytest.fixture
def at(tmp_path):
    """Puts what begins with a slash below a folder that holds a home and a file, and nothing else."""
    (tmp_path / "home").mkdir()
    (tmp_path / "file").write_text("mine")

    def below(value):
        return f"{tmp_path}{value}" if str(value).startswith("/") else value

    return lambda values: {name: below(value) for name, value in values.items()}


@pytest.mark.parametrize("case", CASES)
def test_the_folder(at, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    keys, environment, expected = CASES[case]
    store = open_store(replace(ON_CPU, **at(keys)), at(environment))
    assert (store and store.folder) == (expected and tmp_path / expected)
    made = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_dir())
    parents = [] if expected is None else [expected.rsplit("/", depth)[0] for depth in range(expected.count("/") + 1)]
    assert made == sorted({"home", *parents}) and (tmp_path / "file").read_text() == "mine"


def test_only_its_user_may_write_to_the_default_folder(tmp_path):
    (tmp_path / "caches").mkdir(mode=0o755)
    store = open_store(ON_CPU, {"XDG_CACHE_HOME": str(tmp_path / "caches")})
    for folder in (store.folder, store.folder.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "caches").stat().st_mode) == 0o755


def test_a_default_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    """By its error, since the superuser may write anywhere."""

    def refuse(store, folder):
        raise InputError(f"runtime.compile_cache {folder}: cannot be written (read-only file system)")

    monkeypatch.setattr(GraphStore, "__init__", refuse)
    assert open_store(ON_CPU, {"XDG_CACHE_HOME": str(tmp_path)}) is None
    with pytest.raises(InputError, match="read-only file system"):
        open_store(ON_CPU, {VARIABLE: str(tmp_path)})


@pytest.mark.parametrize("environment", [{}, {"XDG_CACHE_HOME": "/dev/null/caches"}])
def test_without_a_folder_one_line_says_so_to_whom_asks(environment, capsys):
    for shown, lines in (("info", 0), ("debug", 1)):
        set_up_messages(shown)
        assert open_store(ON_CPU, environment) is None
        printed = capsys.readouterr()
        assert (printed.out + printed.err).count("runtime.compile_cache auto: ") == lines
    set_up_messages()


def test_where_it_is_does_not_depend_on_whether_it_is_there(tmp_path):
    caches = tmp_path / "new"
    assert default_folder({"XDG_CACHE_HOME": str(caches)}) == caches / BELOW and not caches.exists()
