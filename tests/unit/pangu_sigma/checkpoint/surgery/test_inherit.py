"""Right after inheritance the sparse model computes what the dense one does: for any router, any domain, bit for bit.

To the bit means: with sums in the same order. The CPU's matrix product (oneDNN on AVX2) works on blocks of 6 rows by 16
columns, and sums in another order what is left over where rows leave a remainder of 1, 2 or 3, or columns one of 1 to
8. A token's row in the dense product and its slot in an expert's give the same bits where neither lies in such a rest,
   as here, with 144 tokens and slots
(whole blocks of any kernel's size) and 320 words; `test_other_sizes_agree_to_rounding` is about sizes that leave one.
"""

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.surgery.dense import OwnModel
from pangu_sigma.checkpoint.surgery.inherit import Noise, inherit
from pangu_sigma.config.load import load_config

GROW = {"dense_layers": 1, "sparse_layers": 1}
ROUTERS = {
    "hash": {"router": {"type": "hash"}},
    "hash by frequency": {"router": {"type": "hash", "hash": {"balance": "frequency"}}},
    "hash top 2": {"router": {"type": "hash", "top_k": 2}},
    "switch": {"router": {"type": "switch", "balance_rate": 0.01}},
    "switch top 2": {"router": {"type": "switch", "top_k": 2}},
    "switch top 2, two shared": {"router": {"type": "switch", "top_k": 2}, "shared_experts": 2},
    "locmoe": {"router": {"type": "locmoe", "locality_bias": {"kind": "margin"}}},
    "locmoe dense gate": {
        "router": {"type": "locmoe", "locmoe": {"gate": "dense"}},
        "expert_placement": "node_grouped",
    },
    "locmoe by word": {"router": {"type": "locmoe", "locmoe": {"gate_input": "word"}}},
    "locmoe by code": {"router": {"type": "locmoe", "balance_rate": 0.01, "locmoe": {"gate_input": "code"}}},
    "gshard": {"router": {"type": "gshard", "top_k": 2}},
    "faster_moe": {"router": {"type": "faster_moe"}},
    "ta_moe": {"router": {"type": "ta_moe"}},
    "smile": {"router": {"type": "smile", "smile": {"num_nodes": 2}}},
    "c2r": {"router": {"type": "c2r", "top_k": 2}},
    "etr": {"router": {"type": "etr"}, "dispatch": {"drop_priority": "weight"}},
    "ragged": {"router": {"type": "switch"}, "dispatch": {"type": "ragged"}, "capacity": {}},
}


@pytest.fixture(scope="module")
def dense(workshop):
    """Two dense layers; trained nowhere, but no number is a default."""
    return workshop.random_model(workshop.config({"dense_layers": 2, "sparse_layers": 0}))


@pytest.fixture(scope="module")
def source(workshop, dense, tmp_path_factory):
    return workshop.save(dense, tmp_path_factory.mktemp("dense"))


@pytest.fixture
def grow(workshop, source, tmp_path):
    """Inherits, and loads the result into a new network."""

    def run(config):
        inherit(OwnModel(str(source)), str(tmp_path / "grown"), config)
        return workshop.load(config, tmp_path / "grown")

    run.folder = tmp_path / "grown"
    return run


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("slots", [False, True], ids=["one word table", "a slot a domain"])
def test_logits_are_the_dense_models(grow, workshop, dense, router, slots):
    config = workshop.config({**GROW, "domain_embeddings": slots}, {"scale_by_gate": False, **ROUTERS[router]})
    grown = grow(config)
    for domain in ((0, 1, 0), (1, 1, 1)):
        np.testing.assert_array_equal(grown.logits(domain), dense.logits(domain))


@pytest.mark.parametrize(
    "model",
    [
        {"dense_layers": 0, "sparse_layers": 2, "sparse_query_layer": True},
        {**GROW, "dense_layers": 2, "sparse_layers": 0, "sparse_query_layer": True},
    ],
    ids=["every layer", "the query layer alone"],
)
def test_any_layers_may_become_sparse(grow, workshop, dense, model):
    grown = grow(workshop.config(model, {"scale_by_gate": False, "num_groups": 1, "router": {"type": "hash"}}))
    np.testing.assert_array_equal(grown.logits((0, 1, 0)), dense.logits((0, 1, 0)))


def test_each_layer_has_its_router(grow, workshop, dense):
    moe = {"router": {"type": "locmoe"}, "routers": [{"layers": [0], "type": "hash"}]}
    grown = grow(workshop.config({"dense_layers": 0, "sparse_layers": 2}, {"scale_by_gate": False, **moe}))
    routers = [type(block.feed_forward.routing.router).__name__ for block in grown.parts.network.blocks]
    assert routers == ["HashRouter", "LocMoERouter"]
    np.testing.assert_array_equal(grown.logits((0, 1, 0)), dense.logits((0, 1, 0)))


def test_weights_of_a_hash_gate_add_up_to_one(grow, workshop, dense):
    """So outputs may be scaled by them. Two weights and a sum are rounded, in float32, and what follows of them."""
    moe = {"router": {"type": "hash", "top_k": 2, "hash": {"weights": "gate"}}}
    grown = grow(workshop.config(GROW, moe))
    np.testing.assert_allclose(grown.logits((0, 1, 0)), dense.logits((0, 1, 0)), rtol=0, atol=1e-5)


def test_eight_of_eight_beside_shared_experts_are_the_dense_model(grow, workshop, dense):
    """Eight eighths, which need not add up to the bit: 8 roundings in one layer, and what follows from them."""
    moe = {"num_experts": 8, "num_groups": 1, "shared_experts": 1, "router": {"type": "locmoe", "top_k": 8}}
    grown = grow(workshop.config(GROW, {"scale_by_gate": False, **moe}))
    found, expected = grown.logits((0, 1, 0)), dense.logits((0, 1, 0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=20 * np.finfo(np.float32).eps * np.abs(expected).max())


def test_shared_experts_are_drawn_but_for_their_output(workshop, source, tmp_path, capsys):
    config = workshop.config({**GROW, "init_std": 0.05}, {"router": {"type": "switch"}, "shared_experts": 3})
    inherit(OwnModel(str(source)), str(tmp_path / "grown"), config)
    assert "4 experts in each of 1 sparse layers, beside 3 shared with an output of 0" in capsys.readouterr().out
    with CheckpointReader.open(tmp_path / "grown") as reader:
        name = "blocks.1.feed_forward.shared_experts"
        found = {part: reader.read(f"{name}.{part}") for part in ("w_in.weight", "w_in.bias", "w_out.weight")}
    assert found["w_in.weight"].shape == (60, 16) and 0.045 < found["w_in.weight"].std() < 0.055  # 960 draws
    assert found["w_out.weight"].shape == (16, 60) and not found["w_out.weight"].any() and not found["w_in.bias"].any()


def test_the_comparison_is_of_something(grow, workshop, dense):
    """With the gate's weights on its outputs the new model is another one."""
    grown = grow(workshop.config(GROW, {"router": {"type": "switch"}}))
    assert np.abs(grown.logits((0, 1, 0)) - dense.logits((0, 1, 0))).max() > 0.01


def test_other_sizes_agree_to_rounding(grow, workshop, dense):
    """As many slots as the busiest expert has tokens, a number that leaves a rest with tokens in it: sums of at most 20
    terms in another order, in one layer, and what follows from it.
    """
    table = grow(workshop.config(GROW, {"router": {"type": "hash"}, "num_groups": 1}))
    table = table.parts.network.blocks[1].feed_forward.routing.router.table.asnumpy()[0]
    ids, slots = next(
        (ids, slots)
        for ids in (np.random.default_rng(seed).integers(0, 320, (3, 48)).astype(np.int32) for seed in range(99))
        for slots in (np.bincount(table[ids.reshape(-1)]).max(),)
        if slots % 6 in (1, 2, 3)
    )
    config = workshop.config(
        GROW,
        {
            "scale_by_gate": False,
            "router": {"type": "hash"},
            "num_groups": 1,
            "capacity": {"evaluation_factor": float(slots) / 36},
        },
    )
    found, expected = workshop.load(config, grow.folder).logits((0, 1, 0), ids), dense.logits((0, 1, 0), ids)
    np.testing.assert_allclose(found, expected, rtol=0, atol=20 * np.finfo(np.float32).eps * np.abs(expected).max())


def test_new_words_are_drawn_and_old_ones_keep_their_scores(grow, workshop, dense):
    words = 352  # two blocks of 16 columns more
    config = workshop.config(
        {**GROW, "vocab_size": words, "domain_embeddings": True, "init_std": 0.05},
        {"scale_by_gate": False, "router": {"type": "hash"}},
    )
    grown = grow(config)
    np.testing.assert_array_equal(grown.logits((0, 1, 0))[:, :320], dense.logits((0, 1, 0)))
    table = grown.parts.network.embedding.word.asnumpy().reshape(2, words, 16)
    np.testing.assert_array_equal(table[0], table[1])
    assert 0.045 < table[0, 320:].std() < 0.055  # 512 draws: 0.05 to 3 per cent


def test_noise_makes_experts_differ_by_as_much_as_asked(workshop, dense, source, tmp_path):
    config = workshop.config({**GROW, "ffn_hidden_size": 20}, {"router": {"type": "hash"}})
    inherit(OwnModel(str(source)), str(tmp_path / "noisy"), config, Noise(0.1, seed=5))
    original = dense.parts.network.blocks[1].feed_forward
    w_in, w_out = original.w_in.weight.asnumpy().T, original.w_out.weight.asnumpy().T
    with CheckpointReader.open(tmp_path / "noisy") as reader:
        banks = {
            name: np.stack([reader.read(f"blocks.1.feed_forward.experts.{name}@{e}") for e in range(4)])
            for name in ("w_in", "w_out", "b_in", "b_out")
        }
    for name, matrix in (("w_in", w_in), ("w_out", w_out)):
        noise = (banks[name] - matrix) / matrix.std()
        assert 0.09 < noise.std() < 0.11  # 1,280 draws: 0.1 to 2 per cent
        correlation = np.corrcoef(noise.reshape(4, -1))
        assert np.abs(correlation - np.eye(4)).max() < 0.2
    for name, bias in (("b_in", original.w_in.bias), ("b_out", original.w_out.bias)):
        np.testing.assert_array_equal(banks[name], np.tile(bias.asnumpy(), (4, 1, 1)))


def test_the_folder_says_what_it_is(workshop, source, tmp_path):
    """Weights alone, in as many shards as asked for, and the configuration that they are for."""
    config = workshop.config(GROW, {"router": {"type": "switch"}})
    inherit(OwnModel(str(source)), str(tmp_path / "grown"), config, shards=3)
    with CheckpointReader.open(tmp_path / "grown") as reader:
        assert (reader.header.step, reader.header.contents, len(reader.manifest.shards)) == (0, "weights", 3)
        assert reader.header.origin == (f"inherited from {source}, step 7",)
        assert not any(name.startswith("adam") for name in reader.names())
        assert sum("@" in name for name in reader.names()) == 4 * 4  # a layer's four parameters, four experts
        assert len(list(reader.verify())) == len(reader.names())
    assert load_config(tmp_path / "grown" / "config.yaml") == config


@pytest.mark.parametrize(
    "model, moe, message",
    [
        (
            {"dense_layers": 2, "sparse_layers": 1},
            {},
            r"dense_layers \(2\) \+ model.sparse_layers \(1\): the dense model has 2 layers",
        ),
        ({**GROW, "activation": "relu"}, {}, "model.activation is relu, but .* is a network with gelu"),
        ({**GROW, "final_norm": "after_query"}, {}, "model.final_norm is after_query, but .* before_query"),
        ({**GROW, "num_heads": 4}, {}, "model.num_heads is 4, but"),
        (
            {**GROW, "ffn_hidden_size": 24},
            {},
            r"feed_forward.w_in.bias: the dense model has shape \[20\]; expected \[24\]",
        ),
        ({"dense_layers": 2, "sparse_layers": 0}, {}, "model.sparse_layers is 0 and"),
    ],
)
def test_what_is_no_heir_is_refused(workshop, source, tmp_path, model, moe, message):
    with pytest.raises(InputError, match=message):
        inherit(OwnModel(str(source)), str(tmp_path / "grown"), workshop.config(model, moe))
    assert list(tmp_path.iterdir()) == []


def test_neither_a_sparse_source_nor_a_target_in_use_will_do(workshop, source, tmp_path):
    config = workshop.config(GROW, {"router": {"type": "hash"}})
    inherit(OwnModel(str(source)), str(tmp_path / "grown"), config)
    with pytest.raises(InputError, match="grown: is there already; expected the name of a new folder"):
        inherit(OwnModel(str(source)), str(tmp_path / "grown"), config)
    with pytest.raises(
        InputError, match="has 1 sparse layers, sparse_query_layer False.*; inherit expected a dense model"
    ):
        OwnModel(str(tmp_path / "grown"))
