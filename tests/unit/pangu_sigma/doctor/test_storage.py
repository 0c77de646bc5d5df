"""The doctor on disk and data: room for checkpoints, the speed of writing, and a prepared folder that is whole or
not.
"""

import os
import shutil
from types import SimpleNamespace

import pytest

from pangu_sigma.config.load import config_from_dict
from pangu_sigma.doctor import storage as doctor_storage
from pangu_sigma.doctor.findings import FAILURE, OK, UNKNOWN, WARNING


def config(**sections):
    return config_from_dict(
        {
            "model": {"hidden_size": 8, "num_heads": 2, "dense_layers": 1, "sparse_layers": 2, "sequence_length": 32},
            "moe": {"num_experts": 4},
            **sections,
        }
    )


@pytest.fixture
def prepared(tiny_data, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(tiny_data, folder)
    return folder


def found(config):
    return {finding.subject: finding for finding in doctor_storage.check_storage(config)}


def test_without_a_configuration_there_is_nothing_to_check():
    assert [finding.level for finding in doctor_storage.check_storage(None)] == [UNKNOWN, UNKNOWN]


def test_a_checkpoint_by_hand():
    """Width 8, inner width 32: attention 4 x 64 in 4 layers; 2 dense networks and 2 x 4 experts of 2 x 256; 100 words
    and 64 positions of 8."""
    assert doctor_storage.checkpoint_bytes(config(), 100) == 12 * (4 * 256 + 10 * 512 + 164 * 8)
    shared = config(moe={"num_experts": 4, "shared_experts": 3})
    assert doctor_storage.checkpoint_bytes(shared, 100) == 12 * (4 * 256 + 16 * 512 + 164 * 8)


def test_checkpoints_at_a_time():
    """The two newest and the one being written; and of 45 steps the 10th, 20th, 30th and 40th for good."""
    assert doctor_storage.most_checkpoints(config()) == 3
    assert (
        doctor_storage.most_checkpoints(config(train={"steps": 45}, checkpoint={"interval": 5, "keep_every": 10})) == 7
    )


def test_a_good_folder_and_disk(prepared, tmp_path):
    findings = found(config(data={"path": str(prepared)}, train={"output_dir": str(tmp_path / "new" / "run")}))
    assert {subject: findings[subject].level for subject in ("disk", "data")} == {"disk": OK, "data": OK}
    assert findings["disk speed"].level in (OK, WARNING) and "a second" in findings["disk speed"].found
    assert str(tmp_path) in findings["disk"].found and "3 checkpoints" in findings["disk"].found
    assert "rows to train on" in findings["data"].found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]  # nothing was made, nothing is left


@pytest.mark.parametrize(("share", "level"), [(3.0, OK), (1.5, WARNING), (0.9, FAILURE)])
def test_room_for_checkpoints(monkeypatch, tmp_path, share, level):
    need = 3 * doctor_storage.checkpoint_bytes(config(), 100)
    monkeypatch.setattr(os, "statvfs", lambda place: SimpleNamespace(f_bavail=int(share * need), f_frsize=1))
    finding, *_ = doctor_storage.check_disk(config(train={"output_dir": str(tmp_path)}), 100)
    assert finding.level == level and f"about {need / 1000:.0f} kB" in finding.found


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (finding,) = doctor_storage.check_disk(config(train={"output_dir": str(tmp_path / "file" / "run")}), 100)
    assert finding.level == FAILURE and f"cannot write in {tmp_path}/file" in finding.found


def test_a_disk_that_is_full_or_slow(monkeypatch, tmp_path):
    settings = config(train={"output_dir": str(tmp_path)})
    monkeypatch.setattr(doctor_storage, "SLOW", 1e15)
    assert doctor_storage.check_disk(settings, 100)[-1].level == WARNING

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    finding = doctor_storage.check_disk(settings, 100)[-1]
    assert finding.level == FAILURE and "No space left on device" in finding.found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "fragment"),
    [
        (lambda folder: shutil.rmtree(folder), "is no folder"),
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder: (folder / "train-one.mindrecord").unlink(), "train-one.mindrecord: is missing"),
        (lambda folder: (folder / "tokenizer.model").write_bytes(b"x"), "tokenizer.model: found 1 bytes"),
    ],
)
def test_data_that_is_not_whole(prepared, spoil, fragment):
    spoil(prepared)
    finding = found(config(data={"path": str(prepared)}))["data"]
    assert finding.level == FAILURE and fragment in finding.found and finding.fix


def test_data_without_the_clusters_that_are_placed(prepared):
    finding = found(config(data={"path": str(prepared), "placement": "clustered"}))["data"]
    assert finding.level == FAILURE and "no clusters" in finding.found and "prepare" in finding.fix


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e8, "250 MB"), (7e10, "70.0 GB"), (3e15, "3000 TB")],
)
def test_sizes(amount, text):
    assert doctor_storage._size(amount) == text
