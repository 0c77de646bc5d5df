"""The shard writer beside the safetensors library, which did not write the files that it reads here."""

import tracemalloc
import zlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pangu_sigma.checkpoint.shards import PlannedTensor, ShardFiles, planned, write_shard
from pangu_sigma.errors import DamagedCheckpoint

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "odd": np.arange(3, dtype=np.int8),
    "b": np.array([2**40, -1], np.int64),
    "half": np.array([0.5], np.float16),
    "empty": np.zeros((0, 3), np.float32),
    "mask": np.array([True, False]),
    "turned": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "ünï[1/2]": np.float32([np.nan, np.inf]),
}


def test_the_library_reads_what_was_written(tmp_path):
    checksums = write_shard(tmp_path / "x.safetensors", [planned(name, array) for name, array in ARRAYS.items()])
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert (
            checksums[name] == f"{zlib.crc32(array.tobytes()):08x}"
        )  # tobytes is in C order, whatever the array's own


def test_what_the_library_wrote_is_read(tmp_path):
    plain = {name: np.ascontiguousarray(array) for name, array in ARRAYS.items()}
    save_file(plain, tmp_path / "x.safetensors")
    with ShardFiles(tmp_path) as files:
        for name, array in plain.items():
            np.testing.assert_array_equal(
                files.read("x.safetensors", name, f"{zlib.crc32(array.tobytes()):08x}"), array
            )


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    """Sixteen tensors of 1 MB: writing and reading them takes the memory of a few."""
    size = 1 << 20
    drawn = [
        PlannedTensor(f"t{i:02}", (size // 4,), "F32", lambda i=i: np.full(size // 4, i, np.float32)) for i in range(16)
    ]
    tracemalloc.start()
    checksums = write_shard(tmp_path / "x.safetensors", drawn)
    with ShardFiles(tmp_path) as files:
        for i in range(16):
            assert files.read("x.safetensors", f"t{i:02}", checksums[f"t{i:02}"])[-1] == i
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < peak < 4 * size


def test_another_tensor_and_a_changed_one_are_refused(tmp_path):
    checksums = write_shard(tmp_path / "x.safetensors", [planned("a", ARRAYS["a"])])
    with ShardFiles(tmp_path) as files:
        with pytest.raises(DamagedCheckpoint, match=r"x\.safetensors: tensor b cannot be read"):
            files.read("x.safetensors", "b", checksums["a"])
        with pytest.raises(DamagedCheckpoint, match=r"x\.safetensors: tensor a has another checksum"):
            files.read("x.safetensors", "a", "00000000")
    with ShardFiles(tmp_path) as files, pytest.raises(DamagedCheckpoint, match="cannot be read"):
        files.read("absent.safetensors", "a", checksums["a"])
