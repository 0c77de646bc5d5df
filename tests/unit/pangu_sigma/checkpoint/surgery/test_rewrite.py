"""The same tensors in other files: any number of shards, there and back, one tensor in memory at a time."""

import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file

from locmoe_ops.errors import InputError
from locmoe_ops.shard_spec import ShardSpec
from pangu_sigma.checkpoint.format import CheckpointHeader, DataState
from pangu_sigma.checkpoint.parts import LocalTensor
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.shards import planned
from pangu_sigma.checkpoint.surgery.inspect import verify
from pangu_sigma.checkpoint.surgery.rewrite import pack, planned_bytes, reshard
from pangu_sigma.checkpoint.writer import CheckpointWriter, Retention, WritingJob

SCALARS = {"loss_scale.scale": 4.0, "optimizer.updates": 5.0, "blocks.0.local_strength": 0.5}


def header(step):
    return CheckpointHeader(
        step, "training", {"model": {}}, DataState(None, 4, ("en",)), {"next_step": step}, {"next_step": step}, SCALARS
    )


def save(root, step, pieces, rank=0):
    with CheckpointWriter(root, WritingJob(rank, (0,), 5.0, lambda: None), Retention()) as writer:
        writer.save(header(step), pieces)
    return root / f"step_{step}"


@pytest.fixture
def source(tmp_path):
    """Weights and moments; one matrix in two parts, as two tensor-parallel ranks write it."""
    rng = np.random.default_rng(0)
    whole = {
        name: rng.standard_normal((6, size)).astype(np.float32)
        for name, size in (("a", 1), ("b", 7), ("c@0", 3), ("c@1", 3))
    }
    whole.update({f"adam_m.{name}": value * 2 for name, value in list(whole.items())})
    halves = [
        LocalTensor(
            "split",
            np.arange(12, dtype=np.float32).reshape(6, 2)[part.shard * 3 : part.shard * 3 + 3],
            part,
            f"s{part.shard}",
        )
        for part in (ShardSpec(0, 0, 2), ShardSpec(0, 1, 2))
    ]
    whole["split"] = np.arange(12, dtype=np.float32).reshape(6, 2)
    folder = save(
        tmp_path / "run",
        5,
        [
            *(
                LocalTensor(name, value, None, "dense_0.safetensors")
                for name, value in whole.items()
                if name != "split"
            ),
            *halves,
        ],
    )
    return folder, whole


@pytest.mark.parametrize("shards", [1, 2, 5, 9])
def test_every_tensor_is_the_same_in_any_number_of_files(source, tmp_path, shards):
    folder, whole = source
    reshard(str(folder), str(tmp_path / "many"), shards)
    reshard(str(tmp_path / "many"), str(tmp_path / "one"), 1)
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) == shards
    found = {name: value for path in files for name, value in load_file(path).items()}
    again = load_file(tmp_path / "one" / "shard_0.safetensors")
    assert set(found) == set(again) == set(whole)
    for name, value in whole.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    with CheckpointReader.open(tmp_path / "one") as reader:
        assert reader.header == header(5)
    verify([str(tmp_path / "many"), str(tmp_path / "one")])


def test_weights_alone(source, tmp_path):
    folder, whole = source
    reshard(str(folder), str(tmp_path / "weights"), 1, weights_only=True)
    with CheckpointReader.open(tmp_path / "weights") as reader:
        assert sorted(reader.names()) == ["a", "b", "c@0", "c@1", "split"]
        assert reader.header.contents == "weights" and reader.header.scalars == {"blocks.0.local_strength": 0.5}


def test_files_are_of_about_equal_size():
    """The largest may exceed the mean by one tensor at most."""
    tensors = [planned(f"t{i}", np.zeros(7 * i + 1, np.float32)) for i in range(40)]
    bins = pack(tensors, 6)
    loads = [sum(planned_bytes(tensor) for tensor in members) for members in bins]
    assert sorted(tensor.key for members in bins for tensor in members) == sorted(tensor.key for tensor in tensors)
    assert max(loads) - min(loads) <= 4 * (7 * 39 + 1)
    assert all(
        pack([planned(f"t{i}", np.zeros(0, np.float32)) for i in range(4)], 4)
    )  # nothing in them, and none without any


def test_memory_is_that_of_the_largest_tensor(tmp_path):
    """Twelve tensors of 1 MB from twelve shards into two."""
    size = 1 << 20
    folder = save(
        tmp_path / "run",
        1,
        [LocalTensor(f"t{i:02}", np.full(size // 4, i, np.float32), None, f"s{i}") for i in range(12)],
    )
    tracemalloc.start()
    reshard(str(folder), str(tmp_path / "two"), 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < peak < 4 * size


def test_what_cannot_be_is_refused(source, tmp_path):
    folder, _ = source
    with pytest.raises(InputError, match="--shards 10: there are only 9 tensors"):
        reshard(str(folder), str(tmp_path / "x"), 10)
    with pytest.raises(InputError, match="is there already"):
        reshard(str(folder), str(folder), 1)
    with pytest.raises(InputError, match="nowhere: no manifest.json there"):
        reshard("nowhere", str(tmp_path / "x"), 1)
    content = bytearray((folder / "dense_0.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "dense_0.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="another checksum"):
        reshard(str(folder), str(tmp_path / "x"), 1)
    assert not list(tmp_path.glob("x*"))
    with pytest.raises(InputError, match="1 of 1 checkpoints damaged"):
        verify([str(tmp_path / "run")])
