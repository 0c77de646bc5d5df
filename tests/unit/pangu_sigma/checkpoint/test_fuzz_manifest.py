"""Whatever a checkpoint's manifest holds: tensors as they were written, or one line that says why not."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pangu_sigma.checkpoint.format as manifests
from locmoe_ops.errors import InputError
from locmoe_ops.shard_spec import ShardSpec
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.surgery.inspect import inspect


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, job, random_tensors):
    """A folder, what its manifest said, and its tensors."""
    root, tensors = tmp_path_factory.mktemp("fuzz"), random_tensors(0)
    job(root, 3, tensors)
    return root / "step_3", (root / "step_3" / manifests.NAME).read_bytes(), tensors


def check(folder, content, tensors):
    """Everything that reads a checkpoint, on a manifest that may say anything."""
    (folder / manifests.NAME).write_bytes(content)
    try:
        inspect(str(folder), list_tensors=True)
        with CheckpointReader.open(folder) as reader:
            for name in reader.names():
                entry = reader.entry(name)
                whole = reader.read(name)
                assert whole.shape == entry.shape
                if entry.shape and entry.shape[-1] % 2 == 0:
                    half = reader.read(name, ShardSpec(len(entry.shape) - 1, 0, 2))
                    np.testing.assert_array_equal(half, whole[..., : entry.shape[-1] // 2])
            reader.config()
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 4000
        return None
    return reader


@settings(deadline=None)
@given(data=st.data())
def test_any_values_under_a_checksum_that_fits(checkpoint, spoil, data):
    folder, original, tensors = checkpoint
    content = json.loads(original)
    spoil(data, content if data.draw(st.integers(0, 9)) == 0 else content["body"])
    try:
        content["checksum"] = manifests._checksum(content.get("body"))
    except RecursionError:
        pass
    check(folder, json.dumps(content).encode(), tensors)


@settings(deadline=None)
@given(data=st.data())
def test_any_bytes(checkpoint, data):
    """Stretches of the file replaced: nothing but white space and spellings of the same can go unnoticed."""
    folder, content, tensors = checkpoint
    meaning = json.loads(content)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        inserted = data.draw(
            st.binary(max_size=8) | st.sampled_from([b"[" * 2000, b"9" * 5000, b"NaN", b"1e999", b"\xff", b" "])
        )
        content = content[:start] + inserted + content[start + data.draw(st.integers(0, 20)) :]
    reader = check(folder, content, tensors)
    if reader is not None:
        assert json.loads(content)["body"] == meaning["body"]
        for name, whole in tensors.items():
            np.testing.assert_array_equal(reader.read(name), whole)
