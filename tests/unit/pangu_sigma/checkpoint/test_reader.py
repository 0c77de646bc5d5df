"""Reading: any part of any tensor, whatever parts it was stored in, and no byte that is not as it was written."""

import os
import shutil

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.shard_spec import ShardSpec
from pangu_sigma.checkpoint.header import differences
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.config import renamed
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.errors import DamagedCheckpoint


def test_every_tensor_comes_back_whole(saved, tensors):
    with CheckpointReader.open(saved) as reader:
        assert sorted(reader.names()) == sorted(tensors)
        for name, whole in tensors.items():
            found = reader.read(name)
            assert found.dtype == whole.dtype
            np.testing.assert_array_equal(found, whole, err_msg=name)
        assert reader.header.step == 3 and reader.header.scalars["loss_scale.scale"] == 65536.0


def test_a_key_that_was_renamed_since_is_read_under_its_new_name(saved, monkeypatch):
    """Made up: what the manifest calls model.hidden_size is called model.num_heads now."""
    monkeypatch.setattr(renamed, "RENAMED", {"model.hidden_size": "model.num_heads"})
    with CheckpointReader.open(saved) as reader:
        assert reader.config().model.num_heads == 4 and reader.config().model.hidden_size == 256
        assert "model.num_heads (5, was 4)" in differences(reader, config_from_dict({"model": {"num_heads": 5}}))


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_any_part_of_what_was_cut_in_two(saved, tensors, parts):
    """Six words a slot, stored as halves of each slot: wholes, the same halves, sixths of them, and thirds, which cut
    across.
    """
    whole = tensors["embedding.word"].reshape(2, 6, 4)
    with CheckpointReader.open(saved) as reader:
        for index in range(parts):
            words = slice(index * 6 // parts, (index + 1) * 6 // parts)
            found = reader.read("embedding.word", ShardSpec(0, index, parts, 2))
            np.testing.assert_array_equal(found, whole[:, words].reshape(-1, 4))


def test_a_cut_along_another_axis(saved, tensors):
    with CheckpointReader.open(saved) as reader:
        np.testing.assert_array_equal(
            reader.read("embedding.word", ShardSpec(1, 1, 2)), tensors["embedding.word"][:, 2:]
        )
        np.testing.assert_array_equal(
            reader.read("blocks.0.norm.gamma", ShardSpec(0, 0, 2)), tensors["blocks.0.norm.gamma"][:2]
        )


def test_only_the_parts_that_are_needed_are_read(saved):
    """The other half's shard is ruined after the sizes were looked at."""
    with CheckpointReader.open(saved) as reader:
        content = (saved / "dense_1.safetensors").read_bytes()
        (saved / "dense_1.safetensors").write_bytes(bytes(len(content)))
        reader.read("embedding.word", ShardSpec(0, 0, 2, 2))
        with pytest.raises(DamagedCheckpoint, match=r"dense_1\.safetensors"):
            reader.read("embedding.word", ShardSpec(0, 1, 2, 2))


def test_what_is_not_there_is_named(saved):
    with CheckpointReader.open(saved) as reader:
        with pytest.raises(InputError, match="no tensor blocks.9"):
            reader.read("blocks.9")
        with pytest.raises(InputError, match="cannot be cut into 5 equal parts"):
            reader.read("embedding.word", ShardSpec(0, 0, 5, 2))


def shards(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


def read_all(folder):
    with CheckpointReader.open(folder) as reader:
        return [name for name in reader.verify()]


def test_a_bit_anywhere_in_any_file_is_noticed(saved):
    """200 bits, spread over the files: each flip makes the checkpoint damaged, or changes nothing that is read (white
    space).
    """
    rng = np.random.default_rng(0)
    files = [*shards(saved), "manifest.json"]
    contents = {name: (saved / name).read_bytes() for name in files}
    silent = 0
    for number in range(200):
        name = files[number % len(files)]
        spoilt = bytearray(contents[name])
        place = int(rng.integers(len(spoilt)))
        spoilt[place] ^= 1 << int(rng.integers(8))
        (saved / name).write_bytes(spoilt)
        try:
            read_all(saved)
        except InputError as error:
            assert name in str(error) and "\n" not in str(error)
        else:
            silent += 1
            assert contents[name][place : place + 1] == b" ", (name, place)
        (saved / name).write_bytes(contents[name])
    assert silent < 10
    assert len(read_all(saved)) == 9


@pytest.mark.parametrize("name", ["dense_0", "dense_1", "experts_0_0", "experts_1_1"])
def test_files_cut_off_lengthened_missing_or_empty(saved, name):
    path = saved / f"{name}.safetensors"
    content = path.read_bytes()
    for spoilt in (content[:-1], content[: len(content) // 2], content[:4], b"", content + b"\0"):
        path.write_bytes(spoilt)
        with pytest.raises(DamagedCheckpoint, match=rf"{name}\.safetensors: \d+ bytes; expected {len(content)}"):
            read_all(saved)
    path.unlink()
    with pytest.raises(DamagedCheckpoint, match=rf"{name}\.safetensors: missing"):
        read_all(saved)


@pytest.mark.parametrize(
    "left, right", [("experts_0_0", "experts_1_0"), ("experts_0_0", "experts_0_1"), ("dense_0", "dense_1")]
)
def test_swapped_shards_are_noticed(saved, left, right):
    """Experts' shards have the same size: names tell experts apart, and checksums what two tensor-parallel ranks have
    of one.
    """
    a, b, aside = saved / f"{left}.safetensors", saved / f"{right}.safetensors", saved / "aside"
    os.rename(a, aside)
    os.rename(b, a)
    os.rename(aside, b)
    with pytest.raises(DamagedCheckpoint, match="safetensors"):
        read_all(saved)


def test_a_shard_of_another_step_is_noticed(saved, job, random_tensors, root):
    job(root, 4, random_tensors(1))
    shutil.copy(root / "step_4" / "dense_0.safetensors", saved / "dense_0.safetensors")
    with pytest.raises(DamagedCheckpoint, match=r"dense_0\.safetensors: tensor .* has another checksum"):
        read_all(saved)
