"""Which folders hold a run, and what is in the way of one."""

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.runtime.run_folder import SAVED_CONFIG, check_new, check_own, holds_run

STEP = '{"progress/step": 1, "train/loss": 5.0}\n'
RUN = {"metrics.jsonl": STEP, "config.yaml": SAVED_CONFIG + "\nmodel: {}\n", "summary.json": '{\n "router": "hash"}'}


def put(folder, **files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, False),
        ({"NOTES.txt": "dear", "config.yaml": "model: {}\n"}, False),
        ({"metrics.jsonl": "epoch,loss\n"}, False),
        ({"metrics.jsonl": '["progress/step"'}, False),
        ({"checkpoints/readme": "x"}, False),
        ({"metrics.jsonl": STEP}, True),
        ({"checkpoints/step_3/manifest.json": "{}"}, True),
        ({"config.yaml": RUN["config.yaml"]}, True),
    ],
)
def test_a_folder_holds_a_run_if_training_wrote_in_it(tmp_path, files, expected):
    assert holds_run(put(tmp_path, **files)) == expected
    if expected:
        with pytest.raises(
            InputError, match=r"holds an earlier run \(.*\); expected a new folder, or checkpoint.resume=auto"
        ):
            check_new(tmp_path)
        check_own(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "cosines.json",
        "profile",
        "tensorboard",
        "checkpoints",
    ],
)
@pytest.mark.parametrize("check", [check_new, check_own])
def test_what_is_in_the_way_of_a_new_run_is_named(tmp_path, name, check):
    put(tmp_path, **{name: "dear", "NOTES.txt": "dear"})
    with pytest.raises(
        InputError, match=f"{name} is in the way, and no run of pangu-sigma wrote it; expected a new folder"
    ):
        check(tmp_path)


def test_other_files_are_in_nobodys_way(tmp_path):
    put(tmp_path, **{"NOTES.txt": "dear", "logs/launch_1/worker_0.log": "", "run.json": "{}"})
    check_new(tmp_path)
    check_own(tmp_path)


@pytest.mark.parametrize("name", ["environment.json", "metrics.jsonl", "summary.json", "cosines.json"])
def test_a_file_of_others_in_a_run_is_not_overwritten_by_its_resuming(tmp_path, name):
    put(tmp_path, **{**RUN, name: "my own table"})
    with pytest.raises(InputError, match=f"{name}: is there already, and pangu-sigma did not write it"):
        check_own(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("elsewhere")
    with pytest.raises(InputError, match=f"{name} is a symbolic link"):
        check_own(tmp_path)


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "run").write_text("x")
    for path in (tmp_path / "run", tmp_path / "dangling"):
        if not path.exists():
            path.symlink_to("nowhere")
        with pytest.raises(InputError, match="is a file"):
            check_new(path)
