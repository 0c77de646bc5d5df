"""Maps in a file: those of a checkpoint, and those that a run would draw, which its network then has."""

import numpy as np
import pytest
from safetensors import safe_open

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.surgery.export_map import export_map
from pangu_sigma.config.load import save_config

LAYERS = {"dense_layers": 1, "sparse_layers": 2, "sparse_query_layer": True}
BY_HASH = {
    "router": {"type": "hash", "top_k": 2, "hash": {"balance": "frequency"}},
    "routers": [{"layers": [1], "type": "switch"}],
}
BY_CODE = {"router": {"type": "locmoe", "locmoe": {"gate_input": "code"}}}


def tables(path):
    """By layer and group."""
    with safe_open(path, "np") as file:
        return {tuple(map(int, name.split(".")[1:4:2])): file.get_tensor(name) for name in file.keys()}


def routers(model):
    network = model.parts.network
    return {0: network.blocks[1], 1: network.blocks[2], 2: network.query_layer}


@pytest.fixture(scope="module")
def by_hash(workshop):
    return workshop.random_model(workshop.config(LAYERS, BY_HASH))


def expected(model, layers):
    """Global ids of experts, of which there are two a group, from the networks' own tables."""
    found = {}
    for layer in layers:
        own = routers(model)[layer].feed_forward.routing.router.expert_by_id()
        for group in (0, 1):
            found[layer, group] = own[group].reshape(320, -1) + 2 * group
    return found


@pytest.mark.parametrize("moe, layers", [(BY_HASH, (0, 2)), (BY_CODE, (0, 1, 2))])
def test_the_maps_of_a_checkpoint(workshop, tmp_path, capsys, moe, layers):
    model = workshop.random_model(workshop.config(LAYERS, moe))
    source, target = workshop.save(model, tmp_path / "run"), tmp_path / "maps.safetensors"
    export_map(str(source), str(target))
    found = tables(target)
    assert found.keys() == expected(model, layers).keys()
    for place, table in expected(model, layers).items():
        assert found[place].dtype == np.int32 and (found[place] == table).all(), place
    assert capsys.readouterr().out.startswith(f"{target}: maps of {len(layers)} of 3 sparse layers\n")


def test_a_configuration_gives_the_maps_that_its_network_draws(workshop, by_hash, tmp_path, capsys):
    config, target = tmp_path / "config.yaml", tmp_path / "maps.safetensors"
    own = workshop.config(LAYERS, BY_HASH, train={"output_dir": str(tmp_path / "not yet"), "global_batch_size": 3})
    save_config(own, config)
    export_map(str(config), str(target))
    found = tables(target)
    for place, table in expected(by_hash, (0, 2)).items():
        assert (found[place] == table).all(), place
    lines = capsys.readouterr().out.splitlines()
    ids, text, shared = map(float, lines[-3].split()[1:])  # of the last layer
    counts = by_hash.words.counts
    loads = [np.bincount(found[2, group].ravel() - 2 * group, np.repeat(counts[group], 2), 2) for group in (0, 1)]
    assert text == pytest.approx(max(load.max() / load.mean() for load in loads), abs=1e-3)
    assert 1.0 <= text < 1.01 and ids >= 1.0 and shared == 1.0  # two experts of two


def test_a_file_is_the_map_of_a_network(workshop, by_hash, tmp_path):
    """Drawn with one seed, written, and taken by a network of another seed."""
    source, target = workshop.save(by_hash, tmp_path / "run"), tmp_path / "maps.safetensors"
    export_map(str(source), str(target))
    moe = {**BY_HASH, "router": {"type": "hash", "top_k": 2, "hash": {"map": str(target)}}}
    other = workshop.random_model(workshop.config(LAYERS, moe, train={"seed": 9, "global_batch_size": 3}))
    for place, table in expected(by_hash, (0, 2)).items():
        assert (expected(other, (0, 2))[place] == table).all(), place


@pytest.mark.parametrize("router", [{"type": "switch"}, {"type": "locmoe"}])
def test_a_model_without_maps_is_refused(workshop, tmp_path, router):
    model = workshop.random_model(workshop.config({"dense_layers": 1, "sparse_layers": 1}, {"router": router}))
    source = workshop.save(model, tmp_path / "run")
    with pytest.raises(InputError, match=rf"no layer's routes follow from token ids \(router {router['type']}\)"):
        export_map(str(source), str(tmp_path / "maps.safetensors"))
    assert not (tmp_path / "maps.safetensors").exists()


def test_what_others_wrote_is_not_overwritten(workshop, by_hash, tmp_path):
    target = tmp_path / "notes.txt"
    target.write_text("mine")
    with pytest.raises(InputError, match="is there already, and pangu-sigma did not write it"):
        export_map(str(workshop.save(by_hash, tmp_path / "run")), str(target))
    assert target.read_text() == "mine"
