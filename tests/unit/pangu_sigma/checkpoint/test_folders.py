"""Names on disk: a checkpoint is whole or absent at every moment between two operations of the file system."""

from pathlib import Path

import pytest

from pangu_sigma.checkpoint import folders
from pangu_sigma.checkpoint.format import CheckpointHeader, CheckpointManifest, DataState, read_manifest, write_manifest


def make(root, *names):
    """Checkpoints of one shard, whose manifest says what they were made as."""
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "dense_0.safetensors").write_bytes(b"1234")
        header = CheckpointHeader(1, "training", {}, DataState(None, 6, ("en",)), {}, {}, {}, (name,))
        write_manifest(CheckpointManifest(header, {}, {"dense_0.safetensors": 4}), root / name)


def made_as(folder):
    return read_manifest(folder).header.origin[0]


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_finished_are_those_under_their_own_names(tmp_path):
    make(
        tmp_path,
        "step_10",
        "step_9",
        "step_11.part",
        "step_8.aside",
        "step_7.removed",
        "step_6.replaced",
        "step_x",
        "step_²",
    )
    (tmp_path / "step_12").write_text("a file")
    assert [(step, path.name) for step, path in folders.finished(tmp_path)] == [(9, "step_9"), (10, "step_10")]
    assert folders.finished(tmp_path / "absent") == []


def test_begin_clears_what_earlier_attempts_left(tmp_path):
    first = folders.begin(tmp_path, 3)
    (first / "dense_0.safetensors").write_bytes(b"half")
    (first / "part_0.json.writing").write_text("")
    make(tmp_path, "step_1", "step_4.aside", "step_2.part")
    part = folders.begin(tmp_path, 3)
    assert part == first and names(part) == [folders.MARKER]
    assert names(tmp_path) == [
        "step_1",
        "step_2.part",
        "step_3.part",
        "step_4.aside",
    ]  # step_2.part is not marked as ours


@pytest.mark.parametrize("name", ["NOTES.txt", "dense_0.safetensors", "manifest.json"])
def test_begin_sets_a_folder_of_others_aside(tmp_path, name):
    (tmp_path / "step_3.part").mkdir()
    (tmp_path / "step_3.part" / name).write_text("dear")
    assert names(folders.begin(tmp_path, 3)) == [folders.MARKER]
    assert (tmp_path / "step_3.part.aside" / name).read_text() == "dear"


@pytest.mark.parametrize("there", ["nothing", "checkpoint", "folder", "file", "link"])
def test_what_is_in_a_checkpoints_place_is_set_aside(tmp_path, there):
    part, final = folders.begin(tmp_path, 3), tmp_path / "step_3"
    if there == "checkpoint":
        make(tmp_path, "step_3")
    elif there == "folder":
        final.mkdir()
        (final / "dense_0.safetensors").write_text("dear")
    elif there == "file":
        final.write_text("dear")
    elif there == "link":
        (tmp_path / "elsewhere").mkdir()
        final.symlink_to("elsewhere")
    (part / "manifest.json").write_text("new")
    folders.publish(part, final)
    assert names(final) == ["manifest.json"] and not final.is_symlink()
    aside = tmp_path / "step_3.aside"
    assert aside.exists() == (there != "nothing") and aside.is_symlink() == (there == "link")
    if there in ("folder", "file"):
        assert (aside / "dense_0.safetensors" if there == "folder" else aside).read_text() == "dear"


@pytest.mark.parametrize("name", ["NOTES.txt", "dense_1.safetensors", "tokenizer.model", "sub/more.txt"])
def test_a_checkpoint_with_a_file_of_others_is_kept(tmp_path, name):
    make(tmp_path, "step_1", "step_2", "step_3", "step_4")
    path = tmp_path / "step_2" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("dear")
    (tmp_path / "step_3" / "manifest.json").write_text("damaged")
    folders.prune(tmp_path, keep_last=1, keep_every=0)
    assert names(tmp_path) == ["step_2", "step_3", "step_4"] and path.read_text() == "dear"


def test_newest_stay_and_multiples(tmp_path):
    make(tmp_path, *(f"step_{step}" for step in range(10, 100, 10)))
    folders.prune(tmp_path, keep_last=2, keep_every=40)
    assert [step for step, _ in folders.finished(tmp_path)] == [40, 80, 90]
    folders.prune(tmp_path, keep_last=5, keep_every=0)
    assert [step for step, _ in folders.finished(tmp_path)] == [40, 80, 90]
    folders.prune(tmp_path, keep_last=1, keep_every=0)
    assert names(tmp_path) == ["step_90"]


def test_later_steps_are_set_aside_under_free_names(tmp_path):
    make(tmp_path, "step_10", "step_20", "step_30", "step_30.aside")
    moved = folders.set_aside_after(tmp_path, 10)
    assert [path.name for path in moved] == ["step_20.aside", "step_30.aside2"]
    assert [step for step, _ in folders.finished(tmp_path)] == [10]
    assert made_as(tmp_path / "step_30.aside2") == "step_30"


def test_a_path_means_a_checkpoint_a_run_or_its_folder(tmp_path):
    make(tmp_path, "run/checkpoints/step_2", "run/checkpoints/step_10")
    both = [tmp_path / "run/checkpoints/step_2", tmp_path / "run/checkpoints/step_10"]
    assert folders.resolve(tmp_path / "run") == both == folders.resolve(tmp_path / "run" / "checkpoints")
    assert folders.resolve(both[0]) == [both[0]]
    assert folders.resolve(Path("nowhere")) == [Path("nowhere")]
