"""Which checkpoint is taken, and what of it."""

import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import mindspore as ms

from locmoe_ops.errors import InputError
from locmoe_ops.routers.selection_bias import current_locality_strength
from locmoe_ops.topology import Topology
from pangu_sigma.checkpoint.surgery.extract import extract
from pangu_sigma.config.load import load_config
from pangu_sigma.errors import DamagedCheckpoint
from pangu_sigma.inference.generator import Generator
from pangu_sigma.inference.load import checkpoint_of, domain_homes, load_model
from pangu_sigma.runtime.launch import Launch


def test_which_checkpoint_is_meant(run_folder, tmp_path):
    config = load_config(run_folder / "config.yaml")

    def meant(resume, initial=None, run=config.train.output_dir):
        return checkpoint_of(
            replace(
                config,
                checkpoint=replace(config.checkpoint, resume=resume, initial=initial),
                train=replace(config.train, output_dir=str(run)),
            )
        )

    assert meant(None) == meant("auto") == meant("auto", "first") == run_folder
    assert str(meant("runs/a/checkpoints/step_5")) == "runs/a/checkpoints/step_5"
    assert str(meant(None, "first", tmp_path)) == "first"  # a run that has not begun
    assert checkpoint_of(str(run_folder)) == run_folder


def test_a_damaged_checkpoint_is_passed_over(run_folder, tmp_path, capsys):
    for step in (2, 3):
        shutil.copytree(run_folder / "checkpoints" / "step_2", tmp_path / "checkpoints" / f"step_{step}")
    shard = max((tmp_path / "checkpoints" / "step_3").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert load_model(tmp_path).checkpoint.name == "step_2"
    assert "trying the checkpoint before it" in capsys.readouterr().err
    for path in tmp_path.glob("checkpoints/*/*.safetensors"):
        os.truncate(path, 100)
    with pytest.raises(InputError, match="none of the 2 checkpoints there is whole"):
        load_model(tmp_path)


def test_one_rank_of_several_looks_for_no_other_checkpoint(run_folder, tmp_path, monkeypatch):
    """It would have experts of another step than the other ranks, whose files are whole."""
    for step in (1, 2):
        shutil.copytree(run_folder / "checkpoints" / "step_2", tmp_path / "checkpoints" / f"step_{step}")
    (tmp_path / "checkpoints" / "step_2" / "manifest.json").write_text("{}")
    monkeypatch.setattr("pangu_sigma.inference.load.read_launch", lambda: Launch(0, 2))
    with pytest.raises(DamagedCheckpoint, match="step_2"):
        load_model(tmp_path, spread=True)
    with pytest.raises(InputError, match="found a job of 2 ranks; expected one process"):
        load_model(tmp_path)


def test_another_model_is_refused(run_folder):
    config = load_config(run_folder / "config.yaml", ["moe.router.type=hash"])
    with pytest.raises(InputError, match="moe.router.type is hash, but .* was trained with locmoe"):
        load_model(config)


@pytest.mark.parametrize(
    ("placement", "domains", "nodes", "expected"),
    [
        ("domain_by_node", 4, 2, (0, 0, 2, 2)),
        ("domain_by_node", 2, 4, (0, 4)),
        ("domain_by_node", 3, 2, (0, 0, 2)),  # the second begins on the first node and ends on the second
        ("domain_by_node", 2, 3, (0, 2)),
        ("domain_cluster_by_node", 2, 4, (0, 4)),
        ("clustered", 3, 2, (0, 0, 0)),  # clusters may hold text of any domain
        ("shuffled", 3, 2, (0, 0, 0)),
    ],
)
def test_home_of_a_domain_by_hand(placement, domains, nodes, expected):
    """Nodes of two ranks."""
    context = SimpleNamespace(
        config=SimpleNamespace(data=SimpleNamespace(placement=placement)),
        shape=SimpleNamespace(domains=domains),
        layout=Topology(2 * nodes, 2),
    )
    assert domain_homes(context) == expected


def test_local_terms_are_on_when_asked_for(save_run):
    """Domain i's rows belong to node i, whose first rank is 2 * i."""
    layout = {"world_size": 4, "ranks_per_node": 2, "expert": 2}
    folder = save_run(
        {
            "logical_topology": layout,
            "expert_placement": "node_grouped",
            "router": {"locality_bias": {"kind": "bias", "strength": 0.5}},
        },
        data={"placement": "domain_by_node"},
        train={"steps": 2, "global_batch_size": 4, "output_dir": "elsewhere"},
    )
    without, with_term = load_model(folder), load_model(folder, local_term=True)
    assert (current_locality_strength(without.network), current_locality_strength(with_term.network)) == (0.0, 0.5)
    assert without.homes == with_term.homes == (0, 2)
    assert without.context.layout.nodes == 2


def test_an_extracted_model_says_what_the_whole_one_says(run_folder, tmp_path):
    """Its tokenizer lies beside it; of the domains there is one, now number 0."""
    extract(str(run_folder), str(tmp_path / "two"), "two")
    whole, part = Generator.load(run_folder), Generator.load(tmp_path / "two")
    ms.set_context(mode=ms.PYNATIVE_MODE)  # one pass each
    ids = whole.codec.encode("abcd efgh", 1)
    assert part.codec.encode("abcd efgh", 0) == ids
    np.testing.assert_allclose(part.logits(ids, 0), whole.logits(ids, 1), rtol=0, atol=1e-6)
