"""The folder of kept graphs: whole or not at all, whoever writes, reads, damages or fills it."""

import os
import threading

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.runtime.compile_cache.store import MAGIC, SUFFIX, DamagedGraph, GraphStore

KEY = "0" * 64


@pytest.fixture
def store(tmp_path):
    return GraphStore(tmp_path / "kept" / "here")


def keep(store, key, content, tmp_path):
    source = tmp_path / f"source-{threading.get_ident()}"
    source.write_bytes(content)
    store.keep(key, source)


def test_what_was_kept_is_fetched(store, tmp_path):
    target = tmp_path / "target"
    assert not store.fetch(KEY, target) and not target.exists()
    keep(store, KEY, b"a graph", tmp_path)
    assert store.fetch(KEY, target) and target.read_bytes() == b"a graph"
    assert not store.fetch("1" * 64, tmp_path / "other")
    assert [path.name for path in store.folder.iterdir()] == [KEY + SUFFIX]


DAMAGE = {
    "a bit flipped": lambda content: content[:-2] + bytes([content[-2] ^ 4]) + content[-1:],
    "a bit of the checksum": lambda content: content.replace(content[len(MAGIC) : len(MAGIC) + 1], b"\x00", 1)[:-1],
    "cut off": lambda content: content[:-3],
    "cut off in its head": lambda content: content[:10],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"\0",
    "something else": lambda content: b"not ours",
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_damaged_is_removed_and_told(store, tmp_path, case):
    keep(store, KEY, b"a graph" * 20, tmp_path)
    path = store.folder / (KEY + SUFFIX)
    path.write_bytes(DAMAGE[case](path.read_bytes()))
    with pytest.raises(DamagedGraph, match=KEY):
        store.fetch(KEY, tmp_path / "target")
    assert not path.exists() and not (tmp_path / "target").exists()
    assert not store.fetch(KEY, tmp_path / "target")


def test_what_was_not_used_for_longest_makes_room_and_files_of_others_stay(tmp_path):
    size = 1000 + len(MAGIC) + 32
    store = GraphStore(tmp_path / "kept", limit=3 * size)
    other = store.folder / f"mine{SUFFIX}"
    other.write_bytes(b"a drawing")
    for number in range(3):
        keep(store, str(number) * 64, b"x" * 1000, tmp_path)

        os.utime(store.folder / f"{str(number) * 64}{SUFFIX}", (number, number))
    assert store.fetch("0" * 64, tmp_path / "target")  # now number 1 is the oldest
    keep(store, "3" * 64, b"x" * 1000, tmp_path)
    names = {path.name[0] for path in store.folder.iterdir()}
    assert "1" not in names and {"0", "3", "m"} <= names and other.read_bytes() == b"a drawing"


def test_what_a_killed_writer_left_makes_room_too(tmp_path):
    size = 1000 + len(MAGIC) + 32
    store = GraphStore(tmp_path / "kept", limit=2 * size)
    left, other = (store.folder / f".writing-{digit * 8}" for digit in "01")
    left.write_bytes(MAGIC + b"x" * 900)
    other.write_bytes(b"a drawing")
    for path in (left, other):
        os.utime(path, (1, 1))
    keep(store, "0" * 64, b"x" * 1000, tmp_path)
    assert left.exists()  # there is room for it
    keep(store, "1" * 64, b"x" * 1000, tmp_path)
    assert sorted(path.name[0] for path in store.folder.iterdir()) == [".", "0", "1"] and other.exists()


def test_many_writers_and_readers_of_one_folder(store, tmp_path):
    """Every fetch gives all of one writer's content, or nothing."""
    wrong = []

    def work(number):
        for turn in range(30):
            keep(store, KEY, bytes([number]) * 5000, tmp_path)
            target = tmp_path / f"target-{number}"
            if store.fetch(KEY, target) and len(set(target.read_bytes())) != 1:
                wrong.append(turn)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and [path.name for path in store.folder.iterdir()] == [KEY + SUFFIX]


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"runtime.compile_cache .*file/kept: cannot be written"):
        GraphStore(tmp_path / "file" / "kept")
