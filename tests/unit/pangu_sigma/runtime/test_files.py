"""Files are replaced whole or not at all, and nothing that this program did not write is removed or overwritten."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.runtime import files

OWN = ("*.bin", "sub/*.txt", "manifest.json")


def tree(folder):
    """Every path below a folder with what it is: content, the target of a link, or None for a folder."""
    found = {}
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(parent) / name
            found[str(path.relative_to(folder))] = (
                os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
            )
    return found


def test_written_through_a_link_and_nothing_beside(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    files.write_atomically(tmp_path / "link.txt", "new")
    assert tree(tmp_path) == {"real.txt": b"new", "link.txt": "real.txt"}


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_everything_as_it_was(tmp_path, monkeypatch, failing):
    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, failing, lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        files.write_atomically(tmp_path / "a", "new")
    assert tree(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize(
    ("content", "accepted"),
    [(None, True), (b"", True), (b"mark and more", True), (b"thesis", False), ("folder", False)],
)
def test_an_output_may_replace_its_own_kind_alone(tmp_path, content, accepted):
    path = tmp_path / "below" / "out"
    path.parent.mkdir()
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    before = tree(tmp_path)
    if accepted:
        files.write_output("--output", path, "mark: new", (b"mark",))
        assert path.read_text() == "mark: new"
    else:
        with pytest.raises(InputError, match="--output .*expected"):
            files.write_output("--output", path, "mark: new", (b"mark",))
        assert tree(tmp_path) == before


@pytest.mark.parametrize("foreign", ["NOTES.txt", "sub/more.bin.txt.x", "sub/deep/a.csv"])
def test_a_folder_with_one_foreign_file_stays_whole(tmp_path, foreign):
    folder = tmp_path / "f"
    (folder / "sub" / "deep").mkdir(parents=True)
    for name in ("a.bin", "sub/x.txt", foreign):
        (folder / name).write_text(name)
    before = tree(folder)
    assert not files.remove_folder(folder, OWN) and tree(folder) == before
    (folder / foreign).unlink()
    assert files.remove_folder(folder, OWN) and not folder.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "fifo", "itself"])
def test_links_and_special_files_are_foreign_and_not_followed(tmp_path, kind):
    folder, outside = tmp_path / "f", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "a.bin").write_text("dear")
    (folder / "a.bin").write_text("own")
    entry = folder / "b.bin"
    if kind == "fifo":
        os.mkfifo(entry)
    elif kind == "itself":
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    else:
        entry.symlink_to({"file": outside / "a.bin", "folder": outside, "dangling": "nowhere"}[kind])
    assert not files.remove_folder(folder, OWN)
    assert (outside / "a.bin").read_text() == "dear" and (folder / "a.bin").read_text() == "own"


def test_a_file_that_appears_meanwhile_stays(tmp_path, monkeypatch):
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "a.bin").write_text("own")
    unlink = os.unlink

    def unlink_late(path):
        unlink(path)
        (folder / "NOTES.txt").write_text("just now")

    monkeypatch.setattr(os, "unlink", unlink_late)
    assert not files.remove_folder(folder, OWN)
    assert tree(folder) == {"NOTES.txt": b"just now"}


@pytest.mark.parametrize("there", ["nothing", "empty", "file", "full", "link"])
def test_a_new_folder_takes_no_other_place(tmp_path, there):
    target, other = tmp_path / "t", tmp_path / "other"
    other.mkdir()

    def occupy():
        if there == "file":
            target.write_text("dear")
        elif there == "link":
            target.symlink_to(other)
        elif there != "nothing":
            target.mkdir()
            if there == "full":
                (target / "a.bin").write_text("dear")

    if there in ("nothing", "empty"):
        occupy()
        with files.new_folder(target, OWN) as folder:
            (folder / "a.bin").write_text("new")
        assert tree(target) == {"a.bin": b"new"}
    else:  # it comes to be there while the folder is being filled
        with pytest.raises(OSError), files.new_folder(target, OWN) as folder:
            (folder / "a.bin").write_text("new")
            occupy()
        assert target.is_symlink() or tree(tmp_path).get("t", b"") in (b"dear", None)
        assert there != "full" or (target / "a.bin").read_text() == "dear"
    assert not list(tmp_path.glob(".writing-*"))


def test_new_folders_obey_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        with files.new_folder(tmp_path / "t", OWN) as folder:
            (folder / "a.bin").write_text("x")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o750


KILLED = """
import os, sys
from pathlib import Path
from pangu_sigma.runtime.files import new_folder
with new_folder(Path(sys.argv[1]) / "t", ("*.bin",)) as folder:
    (folder / "a.bin").write_text("half")
    if len(sys.argv) > 2:
        print("ready", flush=True)
        sys.stdin.read()
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_is_not(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    left = list(tmp_path.glob(".writing-*"))
    assert len(left) == 1 and files.abandoned(tmp_path) == left
    living = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert living.stdout.readline() == b"ready\n"
    assert not left[0].exists()  # the second writer has cleared it away
    (tmp_path / ".writing-0123456x").mkdir()  # no name of ours
    (tmp_path / ".writing-01234567").mkdir()  # a name of ours with a file of somebody else
    (tmp_path / ".writing-01234567" / "NOTES.txt").write_text("dear")
    with files.new_folder(tmp_path / "u", OWN):
        pass
    assert len(list(tmp_path.glob(".writing-*/a.bin"))) == 1
    assert (tmp_path / ".writing-0123456x").is_dir() and (tmp_path / ".writing-01234567" / "NOTES.txt").exists()
    living.communicate()


def test_what_is_in_the_way_moves_to_a_free_name(tmp_path):
    for name in ("a", "a.aside", "a.aside3"):
        (tmp_path / name).write_text(name)
    (tmp_path / "a.aside2").symlink_to("nowhere")
    assert files.set_aside(tmp_path / "a").name == "a.aside4"
    assert (tmp_path / "a.aside4").read_text() == "a"


def test_folders_made_are_named_from_below(tmp_path):
    assert files.make_folders(tmp_path / "a" / "b") == [tmp_path / "a" / "b", tmp_path / "a"]
    assert files.make_folders(tmp_path / "a" / "b") == []


def test_new_content_replaces_the_old_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "summary.json"
    for text in ("alt", "新", "name of another encoding: \udce9"):
        files.write_atomically(path, text)
        assert path.read_bytes() == text.encode("utf-8", "backslashreplace")
    assert list(tmp_path.iterdir()) == [path]
