"""Writing beside training: what is on disk when, what training waits for, and how errors come out."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pangu_sigma.checkpoint import parts, writer
from pangu_sigma.checkpoint.folders import finished
from pangu_sigma.checkpoint.parts import LocalTensor
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.writer import CheckpointWriter, Retention, WritingJob
from pangu_sigma.errors import CheckpointNotWritten

ALONE = WritingJob(0, (0,), 5.0, lambda: None)


def piece(value, size=4):
    return LocalTensor("w", np.full(size, value, np.float32), None, "dense_0.safetensors")


def value_in(folder):
    with CheckpointReader.open(folder) as reader:
        return reader.read("w")[0]


def test_others_may_do_no_more_with_the_files_than_the_umask_says(root, header):
    before = os.umask(0o027)
    try:
        with CheckpointWriter(root, ALONE, Retention()) as saver:
            saver.save(header(1), [piece(1)])
    finally:
        os.umask(before)
    assert {
        path.name: oct(path.stat().st_mode & 0o7777) for path in [root / "step_1", *(root / "step_1").iterdir()]
    } == {"step_1": "0o750", "dense_0.safetensors": "0o640", "manifest.json": "0o640"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_old_ones_go_and_multiples_stay(root, header, asynchronous):
    with CheckpointWriter(root, ALONE, Retention(2, 20), asynchronous) as saver:
        for step in range(10, 60, 10):
            saver.save(header(step), [piece(step)])
    assert [step for step, _ in finished(root)] == [20, 40, 50]
    assert sorted(path.name for path in root.iterdir()) == ["step_20", "step_40", "step_50"]
    assert sorted(path.name for path in (root / "step_50").iterdir()) == ["dense_0.safetensors", "manifest.json"]
    assert value_in(root / "step_20") == 20.0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_all_ranks_parts_are_in_one_manifest(root, job, tensors, asynchronous):
    job(root, 3, tensors, asynchronous=asynchronous)
    with CheckpointReader.open(root / "step_3") as reader:
        assert sorted(reader.verify()) == sorted(tensors)
        assert [part.shard for part in reader.entry("embedding.word").parts] == [
            "dense_0.safetensors",
            "dense_1.safetensors",
        ]
        assert [part.shard for part in reader.entry("blocks.0.experts.w_in@3").parts] == [
            "experts_1_0.safetensors",
            "experts_1_1.safetensors",
        ]


class Gate:
    """Holds the writing thread until it is opened."""

    def __init__(self, monkeypatch):
        self.opened, self.reached = threading.Event(), threading.Event()
        real = writer.write_part

        def gated(*arguments):
            self.reached.set()
            assert self.opened.wait(30)
            real(*arguments)

        monkeypatch.setattr(writer, "write_part", gated)


def test_training_goes_on_and_may_change_what_is_being_written(root, header, monkeypatch):
    """While the disk is busy, `save` has returned, the values have changed, and no checkpoint is to be seen."""
    gate, own = Gate(monkeypatch), piece(1.0)
    with CheckpointWriter(root, ALONE, Retention()) as saver:
        saver.save(header(1), [own])
        assert gate.reached.wait(30)
        own.array[:] = 2.0
        saver.check()
        assert finished(root) == [] and (root / "step_1.part").is_dir()
        gate.opened.set()
    assert value_in(root / "step_1") == 1.0


def test_the_next_one_waits_for_the_one_before(root, header, monkeypatch):
    """While `save` waits there is nothing but the first, unfinished."""
    gate, seen = Gate(monkeypatch), []

    def look_and_open():
        seen.append(sorted(path.name for path in root.iterdir()))
        gate.opened.set()

    with CheckpointWriter(root, ALONE, Retention()) as saver:
        saver.save(header(1), [piece(1.0)])
        assert gate.reached.wait(30)
        waiting = threading.Timer(0.2, look_and_open)
        waiting.start()
        saver.save(header(2), [piece(2.0)])
        waiting.join()
        assert seen == [["step_1.part"]]
        assert 1 in [step for step, _ in finished(root)]
        assert saver.stalled_s > 0.1
    assert [step for step, _ in finished(root)] == [1, 2]


def fail(*_):
    raise OSError(28, "No space left on device")


def test_an_error_in_the_thread_comes_out_at_the_next_check(root, header, monkeypatch):
    with CheckpointWriter(root, ALONE, Retention()) as saver:
        saver.save(header(1), [piece(1.0)])
        saver.wait()
        monkeypatch.setattr(writer, "write_part", fail)
        saver.save(header(2), [piece(2.0)])
        with pytest.raises(
            CheckpointNotWritten, match=r"checkpoint .*step_2\.part: cannot be written \(No space left"
        ) as error:
            for _ in range(500):
                saver.check()
                time.sleep(0.01)
        assert "\n" not in str(error.value)
    assert value_in(root / "step_1") == 1.0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_of_the_last_one_comes_out_at_the_end(root, header, monkeypatch, asynchronous):
    monkeypatch.setattr(writer, "write_part", fail)
    with pytest.raises(CheckpointNotWritten, match="No space left"):
        with CheckpointWriter(root, ALONE, Retention(), asynchronous) as saver:
            saver.save(header(1), [piece(1.0)])
    assert finished(root) == []


@pytest.mark.parametrize("when", ["write_shard", "write_manifest", "publish"])
def test_cut_off_anywhere_the_one_before_is_untouched(root, header, monkeypatch, when):
    """The process dies in the middle (here: an exception that nothing handles); a new one resumes, and reaches the step
    again.
    """

    def die(*_):
        raise SystemExit

    with CheckpointWriter(root, ALONE, Retention()) as saver:
        saver.save(header(1), [piece(1.0)])
    target = {"write_shard": parts, "write_manifest": writer, "publish": writer.folders}[when]
    with monkeypatch.context() as patch:
        patch.setattr(target, when, die)
        saver = CheckpointWriter(root, ALONE, Retention(), asynchronous=False)
        with pytest.raises(SystemExit):
            saver.save(header(2), [piece(2.0)])
    assert [step for step, _ in finished(root)] == [1] and value_in(root / "step_1") == 1.0
    with CheckpointWriter(root, ALONE, Retention()) as saver:
        saver.save(header(2), [piece(3.0)])
    assert value_in(root / "step_2") == 3.0
    assert sorted(path.name for path in root.iterdir()) == ["step_1", "step_2"]


def test_a_rank_that_does_not_finish_is_named(root, header):
    """The second rank never writes its part."""
    patient = WritingJob(0, (0, 1), 0.2, lambda: None)
    with pytest.raises(
        CheckpointNotWritten, match=r"step_1\.part: rank 1 did not finish writing in 0.2 s after this rank"
    ):
        with CheckpointWriter(root, patient, Retention()) as saver:
            saver.save(header(1), [piece(1.0)])
    assert finished(root) == []


def test_the_end_of_the_job_ends_the_waiting(root, header):
    lost = RuntimeError("lost rank 1")
    job = WritingJob(0, (0, 1), 1000.0, lambda: None, lambda: lost)
    with pytest.raises(CheckpointNotWritten, match="the job ended before all ranks had written") as error:
        with CheckpointWriter(root, job, Retention()) as saver:
            saver.save(header(1), [piece(1.0)])
    assert error.value.__cause__ is lost


def test_an_error_of_training_is_not_hidden_by_one_of_writing(root, header, monkeypatch):
    monkeypatch.setattr(writer, "write_part", fail)
    with pytest.raises(ZeroDivisionError):
        with CheckpointWriter(root, ALONE, Retention()) as saver:
            saver.save(header(1), [piece(1.0)])
            raise ZeroDivisionError


def test_a_folder_that_cannot_be_made_is_named_at_once(tmp_path, header):
    (tmp_path / "file").write_text("")
    saver = CheckpointWriter(tmp_path / "file" / "checkpoints", ALONE, Retention())
    with pytest.raises(
        CheckpointNotWritten, match=r"file/checkpoints/step_1\.part: cannot be written \(Not a directory\)"
    ):
        saver.save(header(1), [piece(1.0)])


def test_files_are_for_the_owner_to_write(root, header):
    before = os.umask(0o022)
    try:
        with CheckpointWriter(root, ALONE, Retention()) as saver:
            saver.save(header(1), [piece(1.0)])
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in Path(root / "step_1").iterdir()}
    assert modes == {"dense_0.safetensors": 0o644, "manifest.json": 0o644}
