"""The manifest: nothing is lost on the way to disk and back, and nothing that was not written is believed."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.format import (
    NAME,
    CheckpointManifest,
    ShardPart,
    TensorEntry,
    _checksum,
    read_manifest,
    write_manifest,
)
from pangu_sigma.errors import DamagedCheckpoint


@pytest.fixture
def manifest(header):
    whole = TensorEntry((3, 2), "F32", (ShardPart("dense_0.safetensors", "00000001"),))
    cut = TensorEntry(
        (8, 2),
        "I64",
        (ShardPart("dense_0.safetensors", "0000000a"), ShardPart("dense_1.safetensors", "ffffffff")),
        0,
        2,
    )
    scalars = {"loss_scale.scale": 2.0**-14, "optimizer.updates": 7.0, "local_strength": 0.10000000149011612}
    return CheckpointManifest(
        header(12, origin=("inherited from x",), scalars=scalars),
        {"a": whole, "b": cut},
        {"dense_0.safetensors": 200, "dense_1.safetensors": 100},
    )


def test_nothing_is_lost(tmp_path, manifest):
    write_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest


def test_the_file_says_what_it_should(tmp_path, manifest):
    """Read with JSON alone: what other programs, and people, see."""
    write_manifest(manifest, tmp_path)
    content = json.loads((tmp_path / NAME).read_text())
    assert (content["format"], content["version"]) == ("pangu-sigma checkpoint", 2)
    body = content["body"]
    assert body["step"] == 12 and body["scalars"]["loss_scale.scale"] == 2.0**-14
    assert body["sampler"]["next_step"] == 12 and body["rng"]["train.seed"] == 1
    assert body["data"]["tokenizer_sha256"] == "ab" * 32 and body["data"]["domains"] == ["en", "zh"]
    assert body["tensors"]["b"] == {
        "shape": [8, 2],
        "dtype": "I64",
        "slice": {"axis": 0, "blocks": 2},
        "parts": [
            {"shard": "dense_0.safetensors", "crc32": "0000000a"},
            {"shard": "dense_1.safetensors", "crc32": "ffffffff"},
        ],
    }
    assert body["tensors"]["a"]["slice"] is None


def test_a_changed_number_is_noticed(tmp_path, manifest):
    write_manifest(manifest, tmp_path)
    text = (tmp_path / NAME).read_text()
    assert '"step": 12' in text
    (tmp_path / NAME).write_text(text.replace('"step": 12', '"step": 13'))
    with pytest.raises(DamagedCheckpoint, match="manifest.json: not a checkpoint manifest .its checksum differs"):
        read_manifest(tmp_path)


def test_a_changed_version_is_damage(tmp_path, manifest):
    """And no reason to end a run that could resume from the checkpoint before."""
    write_manifest(manifest, tmp_path)
    text = (tmp_path / NAME).read_text()
    assert text.count('"version": 2, "checksum"') == 1
    (tmp_path / NAME).write_text(text.replace('"version": 2, "checksum"', '"version": 3, "checksum"'))
    with pytest.raises(DamagedCheckpoint, match="format version 3 outside, 2 inside"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 40, 500])
def test_a_manifest_cut_off_is_damaged(tmp_path, manifest, length):
    write_manifest(manifest, tmp_path)
    content = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(content[:length])
    with pytest.raises(DamagedCheckpoint, match="manifest.json"):
        read_manifest(tmp_path)


def test_a_folder_that_lost_its_manifest_is_damaged_and_a_wrong_name_is_not(tmp_path):
    with pytest.raises(DamagedCheckpoint, match="no manifest.json there"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match="nowhere: no manifest.json there") as caught:
        read_manifest(tmp_path / "nowhere")
    assert not isinstance(caught.value, DamagedCheckpoint)


def test_earlier_and_later_versions_are_refused_but_not_damaged(tmp_path):
    for content, message in (
        (
            {"format_version": 1, "step": 2, "config": {}, "files": {}},
            "format version 1, of an earlier release .*; expected 2",
        ),
        (
            {"format": "pangu-sigma checkpoint", "version": 3, "checksum": "", "body": {}},
            "format version 3; expected 2",
        ),
    ):
        (tmp_path / NAME).write_text(json.dumps(content))
        with pytest.raises(InputError, match=message) as caught:
            read_manifest(tmp_path)
        assert not isinstance(caught.value, DamagedCheckpoint)


@pytest.mark.parametrize("name", ["../dense_0.safetensors", "/etc/passwd", "..", "", "a/b", NAME])
def test_a_shard_lies_in_its_own_folder(tmp_path, manifest, name):
    """A manifest made by somebody else, checksum and all."""
    entry = replace(manifest.tensors["a"], parts=(ShardPart(name, "00000001"),))
    write_manifest(replace(manifest, tensors={"a": entry}, shards={name: 200}), tmp_path)
    with pytest.raises(DamagedCheckpoint, match="no plain file name"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("shape, parts", [((3, 2), 2), ((8,), 0)])
def test_parts_that_do_not_fit_are_refused(tmp_path, manifest, shape, parts):
    entry = TensorEntry(shape, "F32", (ShardPart("dense_0.safetensors", "00000001"),) * parts)
    write_manifest(replace(manifest, tensors={"a": entry}), tmp_path)
    with pytest.raises(DamagedCheckpoint, match="parts of shape"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "place, value",
    [
        (("scalars", "optimizer.updates"), 10**400),
        (("step",), 2**63),
        (("data", "fingerprint"), [1]),
        (("config", "model"), 3),
        (("tensors", "a", "shape"), [2**40, 2**40]),
        (("shards", "x" * 300), 1),
        (("shards", "x\ny"), 1),
        (("tensors", "a@b"), {}),
        (("tensors", "@1"), {}),
        (("origin",), None),
        (("rng",), "deep"),
    ],
)
def test_values_that_this_program_never_writes_are_refused(tmp_path, manifest, place, value):
    """With a checksum that fits."""
    write_manifest(manifest, tmp_path)
    content = json.loads((tmp_path / NAME).read_text())
    holder = content["body"]
    for name in place[:-1]:
        holder = holder[name]
    holder[place[-1]] = value
    if value == {}:
        holder[place[-1]] = holder["a"]
    content["checksum"] = _checksum(content["body"])
    text = json.dumps(content).replace(
        '"deep"', "[" * 980 + "]" * 980
    )  # as deep as reading just allows, and more than writing does
    (tmp_path / NAME).write_text(text)
    with pytest.raises(DamagedCheckpoint, match="manifest.json: not a checkpoint manifest"):
        read_manifest(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_a_manifest_says_the_answer_is_one_line(tmp_path_factory, header, data):
    """Any value in the place of any other, with a checksum that fits: a manifest as this program would never write
    it.
    """
    import pangu_sigma.checkpoint.format as module

    folder = tmp_path_factory.mktemp("manifest")
    write_manifest(
        CheckpointManifest(
            header(1), {"a": TensorEntry((2,), "F32", (ShardPart("x.safetensors", "0" * 8),))}, {"x.safetensors": 90}
        ),
        folder,
    )
    body = json.loads((folder / NAME).read_text())["body"]
    place, keys = body, []
    while isinstance(place, (dict, list)) and place and (not keys or data.draw(st.booleans())):
        keys.append(data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))))
        parent, place = place, place[keys[-1]]
    parent[keys[-1]] = data.draw(JSON)
    content = {"format": module.FORMAT, "version": module.VERSION, "checksum": module._checksum(body), "body": body}
    (folder / NAME).write_text(json.dumps(content))
    try:
        read_manifest(folder)
    except InputError as error:
        assert "\n" not in str(error)


@settings(max_examples=200, deadline=None)
@given(
    content=st.binary(max_size=200)
    | st.recursive(st.just("["), lambda inner: inner.map(lambda text: text * 2), max_leaves=14).map(str.encode)
)
def test_bytes_of_any_kind_are_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("manifest")
    (folder / NAME).write_bytes(content)
    with pytest.raises(DamagedCheckpoint):
        read_manifest(folder)
