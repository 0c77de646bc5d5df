"""Which files of a source are read, and that all others are counted: by hand, and for random trees against `find`."""

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locmoe_ops.errors import InputError
from pangu_sigma.data.corpus import read_documents
from pangu_sigma.data.sources import SourceCount, Tally, list_files


def build(root, *paths):
    """Files by path, with their paths as text; `a -> b` is a link, `a!` a pipe, `a/` an empty folder."""
    for path in paths:
        name, arrow, target = path.partition(" -> ")
        place = root / name.rstrip("/!")
        place.parent.mkdir(parents=True, exist_ok=True)
        if arrow:
            place.symlink_to(target)
        elif name.endswith("/"):
            place.mkdir(exist_ok=True)
        elif name.endswith("!"):
            os.mkfifo(place)
        else:
            place.write_text(name)


HIDDEN, AGAIN, BROKEN, PIPE = "hidden", "read under another path", "link that cannot be followed", "no regular file"
CASES = {
    "types": (
        ["a.txt", "b.MD", "c.NDJSON", "p.png", "q.PNG", "archive.tar.gz", "x.001", "Makefile", "strange.a b"],
        ["a.txt", "b.MD", "c.NDJSON"],
        {"of another type, .png": 2, "of another type, .gz": 1, "of another type": 3},
    ),
    "hidden": (
        [
            ".git/config.txt",
            ".git/hooks/a.sh",
            ".ipynb_checkpoints/n.py",
            "d/.cache/x.md",
            ".hidden.txt",
            "d/.e.txt",
            "d/a.txt",
        ],
        ["d/a.txt"],
        {HIDDEN: 6},
    ),
    "linked file": (
        ["s/a.txt", "s/b.txt -> ../out/b", "out/b", "s/c.png -> a.txt"],
        ["s/a.txt", "s/b.txt"],
        {"of another type, .png": 1},
    ),
    "linked folder": (
        ["s/l -> ../out", "out/a.txt", "out/d/b.txt", "out/.git/c.txt"],
        ["s/l/a.txt", "s/l/d/b.txt"],
        {HIDDEN: 1},
    ),
    "a file by two paths": (
        ["s/a.txt -> z.txt", "s/z.txt", "s/b.txt -> ../out/f.txt", "s/c.txt -> ../out/f.txt", "out/f.txt"],
        ["s/b.txt", "s/z.txt"],
        {AGAIN: 2},
    ),
    "a folder by two paths": (
        ["s/a -> z", "s/z/f.txt", "s/l -> ../out", "s/m -> ../out", "out/g.txt"],
        ["s/l/g.txt", "s/z/f.txt"],
        {},
    ),
    "a cache of blobs": (
        ["s/blobs/8f3a", "s/snapshots/main/a.txt -> ../../blobs/8f3a"],
        ["s/snapshots/main/a.txt"],
        {"of another type": 1},
    ),
    "cycles": (
        ["s/a/f.txt", "s/a/up -> ..", "s/self -> .", "s/b/x -> ../c", "s/c/y -> ../b", "s/c/g.txt"],
        ["s/a/f.txt", "s/c/g.txt"],
        {},
    ),
    "a cycle through the folder above": (["s/a.txt", "s/up -> ..", "b.txt"], ["s/a.txt", "s/up/b.txt"], {}),
    "links to nothing": (
        ["s/a.txt", "s/b.txt -> gone", "s/c.txt -> c.txt", "s/d -> e", "s/e -> d", "s/f.txt -> a.txt/x"],
        ["s/a.txt"],
        {BROKEN: 5},
    ),
    "what is no file": (["a.txt", "b.txt!", "d/c.txt!"], ["a.txt"], {PIPE: 2}),
    "hidden, and not": (["s/.h/f.txt", "s/seen -> .h", "s/.l -> d", "s/d/g.txt"], ["s/d/g.txt", "s/seen/f.txt"], {}),
    "a hidden link to a file that is read": (["a.txt", ".b.txt -> a.txt"], ["a.txt"], {HIDDEN: 1}),
    "empty folders": (["a.txt", "d/", "e/f/"], ["a.txt"], {}),
    "odd names": (["天 下.txt", "a\nb.txt", "-rf.txt", "*.md"], ["天 下.txt", "a\nb.txt", "-rf.txt", "*.md"], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(tmp_path, name):
    tree, expected, passed_over = CASES[name]
    build(tmp_path, *tree)
    below = "s/" if any(path.startswith("s/") for path in tree) else ""
    tally = Tally()
    found = list_files("key", str(tmp_path / below), tally)
    assert found == [tmp_path / path for path in sorted(expected)]
    assert dict(tally.counts) == passed_over
    assert list_files("key", str(tmp_path / below)) == found


def test_a_source_may_itself_be_hidden_or_a_link(tmp_path):
    build(tmp_path, ".data/a.txt", ".b.txt", "l -> .data", "m.txt -> .b.txt", ".data/.git/x.txt")
    for source, expected in ((".data", ".data/a.txt"), (".b.txt", ".b.txt"), ("l", "l/a.txt"), ("m.txt", "m.txt")):
        assert list_files("key", str(tmp_path / source), Tally()) == [tmp_path / expected]


@pytest.mark.parametrize(
    ("tree", "source", "message"),
    [
        (
            ["p.png", "q.png", ".x.txt"],
            "",
            "no text files in '{}'; expected *.txt, *.md, *.py, *.jsonl, *.parquet ... "
            "(passed over: 2 of another type, .png (p.png, q.png); 1 hidden (.x.txt))",
        ),
        (["d/"], "d", "no text files in '{}'"),
        (["a.png"], "a.png", "'{}' has an unknown type"),
        (["l.txt -> gone"], "l.txt", "'{}' does not exist"),
        (["p.txt!"], "p.txt", "'{}' is no regular file"),
    ],
)
def test_a_source_without_files_is_named(tmp_path, tree, source, message):
    build(tmp_path, *tree)
    with pytest.raises(InputError) as caught:
        list_files("key", str(tmp_path / source), Tally())
    assert message.format(tmp_path / source if source else tmp_path) in str(caught.value)


NAMES = st.sampled_from(["a", "b", ".h", "c.txt", "d.md", ".e.txt", "f.png", "g.jsonl"])
PATHS = st.lists(NAMES, min_size=1, max_size=4)
STEPS = st.lists(
    st.tuples(st.sampled_from(["file", "file", "link", "link", "pipe", "folder"]), PATHS, PATHS, st.integers(0, 3)),
    max_size=14,
)


def grow(root, steps):
    """Puts files, links (also up, out of the source, and to nothing), pipes and folders where there is room for
    them.
    """
    for kind, path, target, up in steps:
        place = root / "source" / Path(*path)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(place):
                continue
            if kind == "link":
                place.symlink_to(Path(*[".."] * up, *target[: up or None]) if up else Path(*target))
            elif kind == "pipe":
                os.mkfifo(place)
            elif kind == "folder":
                place.mkdir()
            else:
                place.write_text('{"text": "x"}')
        except OSError:  # a file or a broken link stands in the way
            continue


def find(*arguments):
    """Paths that `find` lists; it complains of loops, and goes on."""
    done = subprocess.run(["find", *arguments, "-print0"], capture_output=True)
    return [os.fsdecode(path) for path in done.stdout.split(b"\0") if path]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_all_that_find_lists_is_read_or_counted(tmp_path_factory, steps):
    root = tmp_path_factory.mktemp("tree")
    (root / "source").mkdir()
    (root / "outside.txt").write_text("x")
    grow(root, steps)
    tally, source = Tally(), str(root / "source")
    try:
        files = list_files("key", source, tally)
    except InputError:
        files = []
        list_files_of(source, tally)
    folders = {os.path.realpath(path) for path in find("-L", source, "-type", "d")}
    entries = Counter(
        path for folder in folders for path in find(folder, "-mindepth", "1", "-maxdepth", "1", "!", "-xtype", "d")
    )
    assert len(files) + tally.total == len(entries)
    # No file twice, and none of the wanted types left out that a path without hidden names leads to.
    real = [os.path.realpath(path) for path in files]
    visible = [
        path
        for path in find("-L", source, "-type", "f")
        if not any(part.startswith(".") for part in os.path.relpath(path, source).split("/"))
    ]
    wanted = {os.path.realpath(path) for path in visible if path.endswith((".txt", ".md", ".jsonl"))}
    assert len(set(real)) == len(real) and set(real) == wanted


def list_files_of(source, tally):
    """Counts anew where nothing is read, with the tally that the message was made of."""
    tally.counts.clear()
    with pytest.raises(InputError):
        list_files("key", source, tally)


def test_files_and_records_without_text_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text(" \n\ufeff\n".replace("\ufeff", ""))
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.txt").write_bytes(b"\xef\xbb\xbf")
    (tmp_path / "e.jsonl").write_text("\n\n")
    (tmp_path / "f.jsonl").write_text(
        '{"text": "x"}\n{"text": " "}\n{"text": "y", "domain": "zh"}\n{"text": "z", "domain": null}\n'
    )
    (tmp_path / "g.jsonl").write_text('{"text": ""}\n')
    (tmp_path / "h.png").write_bytes(b"P")
    count = SourceCount()
    assert [document.text for document in read_documents("en", str(tmp_path), count=count)] == ["text", "x", "z"]
    assert count.files == 3
    assert dict(count.files_passed_over.counts) == {"empty": 4, "of another type, .png": 1}
    assert dict(count.records_passed_over.counts) == {"empty": 2, "of another domain": 1}
    assert count.describe() == (
        "passed over 5 files: 4 empty (b.txt, c.txt, d.txt, ...); 1 of another type, .png (h.png); "
        f"passed over 3 records: 2 empty ({tmp_path}/f.jsonl:2, {tmp_path}/g.jsonl:1); 1 of another domain "
        f"({tmp_path}/f.jsonl:3)"
    )


def test_files_beyond_the_limit_are_counted(tmp_path):
    build(tmp_path, "a.txt", "b.txt", "c.txt", "d.txt", "e.png")
    count = SourceCount()
    assert len(list(read_documents("en", str(tmp_path), max_bytes=7, count=count))) == 2
    assert count.files == 2
    assert dict(count.files_passed_over.counts) == {
        "beyond data.prepare.max_bytes_per_domain": 2,
        "of another type, .png": 1,
    }


def test_a_source_of_empty_files_says_so(tmp_path):
    build(tmp_path, "d/")
    for number in range(5):
        (tmp_path / "d" / f"{number}.txt").touch()
    with pytest.raises(
        InputError, match=r"no documents of domain 'en'; expected at least one; passed over 5 files: 5 empty \(0.txt, 1"
    ):
        list(read_documents("en", str(tmp_path / "d")))


def test_names_of_another_encoding_are_shown_with_escapes(tmp_path):
    (tmp_path / "caf\udce9.txt").write_text("text")
    (tmp_path / "b\udce9.\udce9xt").write_text("text")
    (tmp_path / "c\udce9.txt").write_text("")
    count = SourceCount()
    assert len(list(read_documents("en", str(tmp_path), count=count))) == 1
    assert count.describe() == r"passed over 2 files: 1 of another type (b\udce9.\udce9xt); 1 empty (c\udce9.txt)"


def test_a_long_list_of_reasons_is_shortened():
    tally = Tally()
    for number in range(12):
        for _ in range(12 - number):
            tally.add(f"reason {number}", "x")
    assert tally.describe(most=2) == "12 reason 0 (x, x, x, ...); 11 reason 1 (x, x, x, ...); 55 for other reasons"
