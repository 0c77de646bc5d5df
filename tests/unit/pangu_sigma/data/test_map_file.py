"""Files of maps: what is written is read as it was, by others too, and what does not fit is refused in one line."""

import json
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from locmoe_ops.errors import InputError
from pangu_sigma.data.map_file import MapSizes, maps_to_bytes, read_map

VOCABULARY = 11
TWO_GROUPS = MapSizes(num_experts=6, num_groups=2, top_k=2, vocab_size=VOCABULARY)


def drawn(sizes, seed=0):
    """<int>[G, V, k], different experts of a group for each id."""
    per_group = sizes.num_experts // sizes.num_groups
    order = np.random.default_rng(seed).random((sizes.num_groups, sizes.vocab_size, per_group)).argsort(-1)
    return order[..., : sizes.top_k]


@pytest.mark.parametrize("groups, top_k", [(1, 1), (1, 3), (2, 1), (2, 2), (3, 2)])
def test_a_map_is_read_as_it_was_written(tmp_path, groups, top_k):
    sizes = MapSizes(6, groups, top_k, VOCABULARY)
    tables = {layer: drawn(sizes, layer).squeeze(-1) if top_k == 1 else drawn(sizes, layer) for layer in (0, 2, 11)}
    path = tmp_path / "maps.safetensors"
    path.write_bytes(maps_to_bytes(tables, sizes, {"origin": "here"}))
    for layer, table in tables.items():
        found = read_map(str(path), layer, sizes)
        assert found.dtype == np.int32 and found.shape == table.shape and (found == table).all()


def test_others_read_global_ids_and_what_they_belong_to(tmp_path):
    """The format's own words: a header of JSON behind its length, and tensors by name."""
    table, path = drawn(TWO_GROUPS), tmp_path / "maps.safetensors"
    path.write_bytes(maps_to_bytes({1: table}, TWO_GROUPS, {"origin": "step 7"}))
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert header["__metadata__"] == {
        "format": "pangu-sigma-maps/1",
        "num_experts": "6",
        "num_groups": "2",
        "top_k": "2",
        "vocab_size": "11",
        "origin": "step 7",
    }
    with safe_open(path, "np") as file:
        assert sorted(file.keys()) == ["layers.1.groups.0.tid2eid", "layers.1.groups.1.tid2eid"]
        second = file.get_tensor("layers.1.groups.1.tid2eid")
    assert second.dtype == np.int32 and (second == table[1] + 3).all()  # experts 3 to 5 are group 1's


@pytest.mark.parametrize("name", ["layers.2.ffn.gate.tid2eid", "model.layers.2.mlp.gate.tid2eid", "layers.2.tid2eid"])
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_names_of_other_checkpoints_are_taken_for_one_group(tmp_path, name, kind):
    sizes, path = MapSizes(6, 1, 2, VOCABULARY), tmp_path / "model.safetensors"
    table = drawn(sizes)
    other = np.zeros((6, 4), np.float32)
    save_file({name: table[0].astype(kind), name.replace("tid2eid", "weight"): other}, path)
    assert (read_map(str(path), 2, sizes) == table).all()


def stored(tensors):
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


WHOLE = {f"layers.0.groups.{group}.tid2eid": drawn(TWO_GROUPS)[group] + 3 * group for group in (0, 1)}
FIRST = "layers.0.groups.0.tid2eid"


@pytest.mark.parametrize(
    "tensors, line",
    [
        (
            {"layers.1.groups.0.tid2eid": WHOLE[FIRST]},
            "it has no map of sparse layer 0, but of 1; expected one of each",
        ),
        ({"gate.weight": np.zeros((2, 2))}, "it holds no map; expected a safetensors file with tensors layers.I"),
        ({FIRST: WHOLE[FIRST]}, "layer 0 has maps of the groups 0; expected groups 0 to 1 (moe.num_groups is 2)"),
        ({**WHOLE, "layers.0.groups.2.tid2eid": WHOLE[FIRST]}, "layer 0 has maps of the groups 0, 1, 2; expected"),
        ({**WHOLE, FIRST: WHOLE[FIRST][1:]}, "layer 0, group 0: found int64 [10, 2], expected integers [11, 2]: the"),
        (
            {**WHOLE, FIRST: WHOLE[FIRST][:, :1]},
            "layer 0, group 0: found int64 [11, 1], expected integers [11, 2]: the",
        ),
        ({**WHOLE, FIRST: WHOLE[FIRST][:, 0]}, "layer 0, group 0: found int64 [11], expected integers [11, 2]"),
        ({**WHOLE, FIRST: WHOLE[FIRST] * 1.0}, "layer 0, group 0: found float64 [11, 2], expected integers [11, 2]"),
        ({**WHOLE, FIRST: WHOLE[FIRST] + 3}, "layer 0, group 0: token id 0 goes to expert "),
        ({**WHOLE, FIRST: WHOLE[FIRST] - 9}, "layer 0, group 0: token id 0 goes to expert -"),
        (
            {**WHOLE, FIRST: np.where(np.arange(11)[:, None] == 4, 1, WHOLE[FIRST])},
            "layer 0, group 0: token id 4 goes to the experts [1, 1]; expected different ones",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, tensors, line):
    path = tmp_path / "maps.safetensors"
    save_file(stored(tensors), path)
    with pytest.raises(InputError) as caught:
        read_map(str(path), 0, TWO_GROUPS)
    assert str(caught.value).startswith(f"moe.router.hash.map {path}: {line}")


@pytest.mark.parametrize("content", [b"", b"maps", b"\xff" * 64, struct.pack("<Q", 2**62) + b"{}", None])
def test_what_is_no_such_file_is_refused(tmp_path, content):
    path = tmp_path / "maps.safetensors"
    if content is not None:
        path.write_bytes(content)
    for place in (path, tmp_path):
        with pytest.raises(InputError) as caught:
            read_map(str(place), 0, TWO_GROUPS)
        message = str(caught.value)
        assert message.startswith(f"moe.router.hash.map {place}: cannot be read (") and "\n" not in message
