"""Prepared data take the place of earlier ones file by file: what no manifest lists stays, whenever the program is cut
off.
"""

import json
import os

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.data import publish
from pangu_sigma.data.manifest import FORMAT, NAME, SPLITS, TOKEN_COUNTS, TOKENIZERS, describe_file, records_name


def fill(folder, domains, text):
    """A stand-in for prepared data: as many files, with a manifest of them."""
    records = [records_name(split, domain) + end for split in SPLITS for domain in domains for end in ("", ".db")]
    for name in (TOKENIZERS[0], TOKEN_COUNTS, *records):
        (folder / name).write_text(f"{name} {text}")
    listed = {path.name: vars(describe_file(path)) for path in folder.iterdir()}
    (folder / NAME).write_text(json.dumps({"format": FORMAT, "version": 1, "files": listed, "text": text}))


def put(target, domains, text):
    target.mkdir(exist_ok=True)
    publish.finish_publishing(target)
    publish.check_target(target, domains)
    with publish.data_folder(target) as folder:
        fill(folder, domains, text)


def is_whole(target, domains, text):
    """The folder holds these data, and its manifest says so of every file."""
    content = json.loads((target / NAME).read_text())
    assert content["text"] == text and sorted(content["files"]) == sorted(
        [TOKENIZERS[0], TOKEN_COUNTS, *(records_name(s, d) + e for s in SPLITS for d in domains for e in ("", ".db"))]
    )
    assert all(vars(describe_file(target / name)) == entry for name, entry in content["files"].items())
    return sorted(path.name for path in target.iterdir() if path.name not in content["files"] and path.name != NAME)


def test_only_what_the_manifest_lists_is_replaced(tmp_path):
    target = tmp_path / "data"
    put(target, ["en", "zh"], "first")
    (target / "NOTES.txt").write_text("dear")
    (target / "raw").mkdir()
    (target / "raw" / "manifest.json").write_text("dear")
    (target / ".hidden").symlink_to("nowhere")
    put(target, ["en", "code"], "second")
    assert is_whole(target, ["en", "code"], "second") == [".hidden", "NOTES.txt", "raw"]
    assert (target / "raw" / "manifest.json").read_text() == "dear"


def test_links_to_the_folder_go_on_meaning_it(tmp_path):
    put(tmp_path / "data", ["en"], "first")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    put((tmp_path / "link").resolve(), ["en"], "second")
    assert (tmp_path / "link").is_symlink() and is_whole(tmp_path / "link", ["en"], "second") == []


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_is_in_the_way_is_named_and_stays(tmp_path, kind, when):
    target, place = tmp_path / "data", tmp_path / "data" / records_name("train", "zh")
    put(target, ["en"], "first")

    def occupy():
        if kind == "file":
            place.write_text("dear")
        elif kind == "link":
            place.symlink_to("nowhere")
        else:
            place.mkdir()

    with pytest.raises(
        InputError, match="train-zh.mindrecord' is in the way, and prepare did not write it; expected another folder"
    ):
        if when == "before":
            occupy()
            put(target, ["zh"], "second")
        else:
            with publish.data_folder(target) as folder:
                fill(folder, ["zh"], "second")
                occupy()
    assert is_whole(target, ["en"], "first") == [place.name]
    assert kind != "file" or place.read_text() == "dear"


def test_a_listed_file_that_is_another_by_now_is_set_aside(tmp_path, capsys):
    target = tmp_path / "data"
    put(target, ["en"], "first")
    (target / TOKENIZERS[0]).write_text("a tokenizer of my own")
    (target / TOKEN_COUNTS).unlink()
    (target / TOKEN_COUNTS).symlink_to("nowhere")
    put(target, ["en"], "second")
    assert is_whole(target, ["en"], "second") == [TOKEN_COUNTS + ".aside", TOKENIZERS[0] + ".aside"]
    assert (target / (TOKENIZERS[0] + ".aside")).read_text() == "a tokenizer of my own"
    assert "is not as prepare wrote it; it is now tokenizer.model.aside" in capsys.readouterr().err


def test_a_changed_file_of_a_domain_that_is_gone_stays(tmp_path):
    target = tmp_path / "data"
    put(target, ["en", "zh"], "first")
    (target / records_name("train", "zh")).write_text("mine")
    put(target, ["en"], "second")
    assert is_whole(target, ["en"], "second") == [records_name("train", "zh")]


@pytest.mark.parametrize(
    "content", ["years of work", "{}", '{"format": "another", "files": {}}', '["format"]', "[" * 100_000]
)
def test_a_folder_of_others_is_refused(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    with pytest.raises(InputError, match="holds files, but no manifest.json that prepare wrote"):
        publish.check_target(tmp_path, ["en"])
    assert (tmp_path / NAME).read_text() == content


def test_a_manifest_of_another_version_lists_its_files(tmp_path):
    put(tmp_path / "data", ["en"], "first")
    content = json.loads((tmp_path / "data" / NAME).read_text())
    (tmp_path / "data" / NAME).write_text(json.dumps({**content, "version": 99}))
    put(tmp_path / "data", ["en"], "second")
    assert is_whole(tmp_path / "data", ["en"], "second") == []


def test_a_manifest_names_no_files_elsewhere(tmp_path):
    put(tmp_path / "data", ["en"], "first")
    (tmp_path / "dear").write_text("x")
    content = json.loads((tmp_path / "data" / NAME).read_text())
    content["files"]["../dear"] = vars(describe_file(tmp_path / "dear"))
    (tmp_path / "data" / NAME).write_text(json.dumps(content))
    put(tmp_path / "data", ["en"], "second")
    assert (tmp_path / "dear").read_text() == "x"


def test_cut_off_anywhere_the_old_data_or_the_new_come_out_whole(tmp_path, monkeypatch):
    """Cut off at each call that changes names: the next `prepare` finishes it, or starts from the old data."""
    cut = {"left": 0}

    class Cut(BaseException):
        pass

    def cutting(function):
        def call(*arguments, **options):
            if cut["left"] == 0:
                raise Cut
            cut["left"] -= 1
            return function(*arguments, **options)

        return call

    outcomes = set()
    for operations in range(30):
        target = tmp_path / str(operations)
        put(target, ["en", "zh"], "first")
        (target / "NOTES.txt").write_text("dear")
        with monkeypatch.context() as patch:
            for name in ("rename", "replace", "unlink", "rmdir"):
                patch.setattr(os, name, cutting(getattr(os, name)))
            cut["left"] = operations
            try:
                put(target, ["en", "code"], "second")
                done = True
            except Cut:
                done = False
        publish.finish_publishing(target)
        text = json.loads((target / NAME).read_text())["text"]
        left = is_whole(target, ["en", "zh"] if text == "first" else ["en", "code"], text)
        assert "NOTES.txt" in left and all(name.startswith(".writing-") for name in left if name != "NOTES.txt")
        assert text == "second" or not done
        outcomes.add(text)
        put(target, ["en"], "third")
        assert is_whole(target, ["en"], "third") == ["NOTES.txt"]
    assert outcomes == {"first", "second"}
