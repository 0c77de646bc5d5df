"""Names on disk: a checkpoint is whole or absent at every moment between two operations of the file system."""

import os
from pathlib import Path

import pytest

from pangu_sigma.checkpoint import folders


def make(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "manifest.json").write_text(name)


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_finished_are_those_under_their_own_names(tmp_path):
    make(tmp_path, "step_10", "step_9", "step_11.part", "step_8.aside", "step_7.removed", "step_6.replaced", "step_x", "step_²")
    (tmp_path / "step_12").write_text("a file")
    assert [(step, path.name) for step, path in folders.finished(tmp_path)] == [(9, "step_9"), (10, "step_10")]
    assert folders.finished(tmp_path / "absent") == []


def test_begin_clears_what_earlier_attempts_left(tmp_path):
    make(tmp_path, "step_1", "step_2.part", "step_3.part", "step_0.removed", "step_4.aside")
    part = folders.begin(tmp_path, 3)
    assert part.name == "step_3.part" and names(part) == []
    assert names(tmp_path) == ["step_1", "step_3.part", "step_4.aside"]


@pytest.mark.parametrize("there", [False, True])
def test_published_in_place_of_what_was_there(tmp_path, there):
    make(tmp_path, "step_3.part", *(["step_3"] if there else []))
    folders.publish(tmp_path / "step_3.part", tmp_path / "step_3")
    assert names(tmp_path) == ["step_3"]
    assert (tmp_path / "step_3" / "manifest.json").read_text() == "step_3.part"


def test_cut_off_at_any_rename_one_of_both_is_whole(tmp_path, monkeypatch):
    """Replacing takes two renames. Whichever is the last that happens, `recover` leaves one whole checkpoint."""
    real = os.rename
    for allowed in range(3):
        root = tmp_path / str(allowed)
        make(root, "step_3", "step_3.part")
        done = []

        def replace(source, target, allowed=allowed, done=done):
            if len(done) == allowed:
                raise KeyboardInterrupt
            done.append(target)
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", replace)
            if allowed < 2:
                with pytest.raises(KeyboardInterrupt):
                    folders.publish(root / "step_3.part", root / "step_3")
            else:
                folders.publish(root / "step_3.part", root / "step_3")
        folders.recover(root)
        assert [path.name for _, path in folders.finished(root)] == ["step_3"]
        assert (root / "step_3" / "manifest.json").read_text() == ("step_3.part" if allowed == 2 else "step_3")


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
    assert (tmp_path / "step_30.aside2" / "manifest.json").read_text() == "step_30"


def test_a_path_means_a_checkpoint_a_run_or_its_folder(tmp_path):
    make(tmp_path, "run/checkpoints/step_2", "run/checkpoints/step_10")
    both = [tmp_path / "run/checkpoints/step_2", tmp_path / "run/checkpoints/step_10"]
    assert folders.resolve(tmp_path / "run") == both == folders.resolve(tmp_path / "run" / "checkpoints")
    assert folders.resolve(both[0]) == [both[0]]
    assert folders.resolve(Path("nowhere")) == [Path("nowhere")]
