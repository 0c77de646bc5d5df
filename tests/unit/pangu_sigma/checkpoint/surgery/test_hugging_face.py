"""Dense models to and from the layout of the public PyTorch ports of PanGu-alpha: what they compute with our file."""

import json
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindspore import Tensor

from helpers.pangu_ports import THEIRS, port_logits, torch_port
from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.surgery.hugging_face import HuggingFaceModel, is_hugging_face_folder
from pangu_sigma.checkpoint.surgery.inherit import inherit
from pangu_sigma.inference.export_dense import export_hf_pangu_alpha

DENSE = {"dense_layers": 2, "sparse_layers": 0}
LENGTH, WORDS = 48, 320


def one_document(model, ids):
    """Logits of our network, <float32>[B, S, V], where nothing ends a document."""
    place, zeros = np.tile(np.arange(LENGTH, dtype=np.int32), (len(ids), 1)), np.zeros(len(ids), np.int32)
    model.parts.network.set_train(False)
    found = model.parts.network(*map(Tensor, (ids, place, np.zeros_like(ids), zeros, zeros, zeros)))[0]
    return found.asnumpy().reshape(len(ids), LENGTH, -1)


@pytest.fixture(scope="module")
def export(workshop, tmp_path_factory):
    """Exports a random model of these keys; returns it, its checkpoint and the new folder."""

    def run(model, moe=None, **options):
        folder = tmp_path_factory.mktemp("exported")
        made = workshop.random_model(workshop.config(model, moe))
        checkpoint = workshop.save(made, folder)
        config = workshop.config(model, moe, checkpoint={"resume": str(checkpoint)})
        export_hf_pangu_alpha(config, folder / "hf", **options)
        return made, checkpoint, folder / "hf"

    return run


@pytest.fixture(scope="module")
def exported(export):
    return export({**DENSE, "layer_norm_epsilon": 1e-3})


@pytest.fixture
def copy(exported, tmp_path):
    """The exported folder, to be changed."""
    return shutil.copytree(exported[2], tmp_path / "hf")


def ids(rows=2):
    return np.random.default_rng(4).integers(0, WORDS, (rows, LENGTH)).astype(np.int32)


def files_of(folder):
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("activation", sorted(THEIRS.values()))
def test_the_port_computes_what_the_network_does(export, activation):
    model, _, folder = export({**DENSE, "activation": activation})
    state, config = files_of(folder)
    found = one_document(model, ids())
    for row in range(2):
        expected = port_logits(state, config, ids()[row])
        # The network rounds to float32, at 6e-8; a few layers deep a few tens of that remain.
        assert np.abs(found[row] - expected).max() < 1e-5 * np.abs(expected).max()
        for other in set(THEIRS) - {config["activation_function"]}:  # what is compared can be told apart
            wrong = port_logits(state, {**config, "activation_function": other}, ids()[row])
            assert np.abs(found[row] - wrong).max() > 1e-4 * np.abs(wrong).max()


def test_pytorch_loads_every_tensor_and_computes_the_same(exported, tmp_path):
    torch = pytest.importorskip("torch")
    model, _, folder = exported
    state, config = files_of(folder)
    port = torch_port(torch, config)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in state.items()}
    loaded = port.load_state_dict(tensors, strict=True)
    assert not loaded.missing_keys and not loaded.unexpected_keys
    with torch.no_grad():
        expected = port(torch.from_numpy(ids().astype(np.int64))).numpy()
    # Both round to float32, each in its own order.
    assert np.abs(one_document(model, ids()) - expected).max() < 2e-5 * np.abs(expected).max()
    # The ports' own files are PyTorch's: the same model is read from one.
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({name: value.half() for name, value in tensors.items()}, pickled / "pytorch_model.bin")
    plain, half = HuggingFaceModel(folder), HuggingFaceModel(pickled)
    assert half.names() and sorted(half.names()) == sorted(plain.names())
    for name in plain.names():
        np.testing.assert_array_equal(half.read(name), plain.read(name).astype(np.float16).astype(np.float32))


def test_what_an_export_holds(exported):
    state, config = files_of(exported[2])
    assert (config["num_layers"], config["num_heads"], config["vocab_size"]) == (3, 2, WORDS)
    assert (config["hidden_size"], config["intermediate_size"]) == (16, 20)
    assert (config["max_position_embeddings"], config["layer_norm_epsilon"]) == (LENGTH, 1e-3)
    block = ["ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "attn.bias", "attn.masked_bias"]
    block += [f"attn.{name}_proj.{kind}" for name in "qkvc" for kind in ("weight", "bias")]
    block += [f"mlp.{name}.{kind}" for name in ("c_fc", "c_proj") for kind in ("weight", "bias")]
    assert set(state) == {
        *(f"transformer.{name}.weight" for name in ("wte", "wpe", "wqe", "ln_f")),
        "transformer.ln_f.bias",
        "lm_head.weight",
        *(f"transformer.h.{layer}.{name}" for layer in range(3) for name in block),
    }
    header = (exported[2] / "model.safetensors").read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"] == {"format": "pt"}
    assert (exported[2] / "tokenizer.model").is_file() and is_hugging_face_folder(exported[2])


@pytest.mark.parametrize("shards", [0, 3])
def test_a_dense_model_comes_back_to_the_bit(workshop, exported, copy, tmp_path, shards, capsys):
    _, checkpoint, _ = exported
    if shards:
        state = load_file(copy / "model.safetensors")
        (copy / "model.safetensors").unlink()
        places = {name: f"model-{number % shards}.safetensors" for number, name in enumerate(state)}
        for file in set(places.values()):
            save_file({name: state[name] for name, place in places.items() if place == file}, copy / file)
        (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    inherit(HuggingFaceModel(copy), str(tmp_path / "back"), workshop.config({**DENSE, "layer_norm_epsilon": 1e-3}))
    assert "a dense model as it was" in capsys.readouterr().out
    with CheckpointReader.open(tmp_path / "back") as after, CheckpointReader.open(checkpoint) as before:
        names = [name for name in before.names() if not name.startswith(("adam", "optimizer", "loss_scale"))]
        assert sorted(after.names()) == sorted(names)
        for name in names:
            np.testing.assert_array_equal(after.read(name), before.read(name), err_msg=name)


def test_a_sparse_model_grown_from_it_computes_the_same(workshop, exported, tmp_path):
    model, _, folder = exported
    config = workshop.config(
        {"dense_layers": 1, "sparse_layers": 1, "layer_norm_epsilon": 1e-3},
        {"scale_by_gate": False, "router": {"type": "switch"}},
    )
    inherit(HuggingFaceModel(folder), str(tmp_path / "grown"), config)
    found, expected = one_document(workshop.load(config, tmp_path / "grown"), ids(3)), one_document(model, ids(3))
    # Products of 144 tokens and of an expert's slots may sum in another order (see test_inherit).
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def rewrite(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def say(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: say(f, model_type="llama", architectures=["Llama"]), "config.json: its model_type is llama"),
        (lambda f: say(f, num_layers="3"), "config.json: num_layers is 3; expected a whole number"),
        (lambda f: say(f, num_layers=2), r"transformer\.h\.2\..* is no parameter of a PanGu-alpha of 2 layers"),
        (lambda f: say(f, num_layers=4), "nothing for|the dense model has"),
        (lambda f: say(f, num_heads=4), r"model\.num_heads is 2, but .* is a network with 4"),
        (lambda f: say(f, activation_function="silu"), "activation_function is silu; expected one of gelu, gelu_new"),
        (lambda f: say(f, activation_function="gelu_new"), r"model\.activation is gelu, but .* with gelu_tanh"),
        (lambda f: say(f, layer_norm_epsilon=1e-5), r"model\.layer_norm_epsilon is 0\.001, but .* with 1e-05"),
        (lambda f: say(f, scale_attn_weights=False), "scale_attn_weights is not true"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: holds no object"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: .*JSON"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "holds no weights; expected a folder of a public PanGu-alpha port",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{"), "safetensors: cannot be read"),
        (
            lambda f: rewrite(f, lambda state: state.update({"lm_head.weight": state["lm_head.weight"] + 1})),
            "lm_head.weight differs from transformer.wte.weight",
        ),
        (
            lambda f: rewrite(f, lambda state: state.pop("transformer.h.1.attn.v_proj.bias")),
            "nothing for blocks.1.attention.value.bias",
        ),
        (
            lambda f: rewrite(f, lambda state: state.update({"v_head.weight": np.zeros(3, np.float32)})),
            "v_head.weight is no parameter of a PanGu-alpha of 3 layers",
        ),
    ],
)
def test_what_is_no_such_model_is_named(workshop, copy, tmp_path, spoil, told):
    spoil(copy)
    with pytest.raises(InputError, match=told):
        inherit(HuggingFaceModel(copy), str(tmp_path / "new"), workshop.config({**DENSE, "layer_norm_epsilon": 1e-3}))
    assert not list(tmp_path.glob("new*"))


def test_weights_of_the_backbone_alone_have_no_prefix(exported, copy):
    def bare(state):
        for name in list(state):
            value = state.pop(name)
            if name.startswith("transformer."):
                state[name[len("transformer.") :]] = value

    rewrite(copy, bare)
    whole, found = HuggingFaceModel(exported[2]), HuggingFaceModel(copy)
    assert sorted(found.names()) == sorted(whole.names())
    np.testing.assert_array_equal(found.read("final_norm.beta"), whole.read("final_norm.beta"))


def test_pytorchs_own_format_without_pytorch(copy, monkeypatch):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        InputError, match=r"pytorch_model\.bin: is in PyTorch's own format, and PyTorch is not installed"
    ):
        HuggingFaceModel(copy)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"dense_layers": 1, "sparse_layers": 1}, r"blocks\.1 have experts, .* or --dense-part"),
        ({**DENSE, "sparse_query_layer": True}, "query_layer have experts"),
        ({**DENSE, "domain_embeddings": True}, "a word table for each of 2 domains"),
        ({**DENSE, "final_norm": "after_query"}, r"model\.final_norm is after_query"),
    ],
)
def test_what_has_no_place_there_is_refused(export, model, told):
    with pytest.raises(InputError, match=told):
        export(model)


def test_the_dense_part_of_a_model_with_experts(export, capsys):
    made, _, folder = export({"dense_layers": 1, "sparse_layers": 1}, {"router": {"type": "switch"}}, dense_part=True)
    assert "the feed-forward networks of blocks.1 have experts and are left out" in capsys.readouterr().err
    state, config = files_of(folder)
    own = {parameter.name: parameter.asnumpy() for parameter in made.parts.network.get_parameters()}
    assert config["num_layers"] == 3
    assert {name.split(".")[2] for name in state if ".mlp." in name} == {"0", "2"}
    np.testing.assert_array_equal(state["transformer.h.1.attn.c_proj.weight"], own["blocks.1.attention.project.weight"])
    np.testing.assert_array_equal(state["transformer.wqe.weight"], own["query_layer.top_query"])
    assert "shared" not in "".join(state)
    with pytest.raises(InputError, match="--dense-part: .* has no experts to leave out"):
        export(DENSE, dense_part=True)


@pytest.mark.parametrize("shared", [1, 2])
def test_a_shared_expert_that_is_alone_is_a_dense_network(export, capsys, shared):
    """Two are of another width than the dense layers' networks, for which `config.json` has one number."""
    moe = {"router": {"type": "switch", "top_k": 2}, "shared_experts": shared}
    made, _, folder = export({"dense_layers": 1, "sparse_layers": 1}, moe, dense_part=True)
    told = "of blocks.1 the shared expert alone is written" if shared == 1 else "have experts and are left out"
    assert told in capsys.readouterr().err
    state, _ = files_of(folder)
    assert {name.split(".")[2] for name in state if ".mlp." in name} == ({"0", "1", "2"} if shared == 1 else {"0", "2"})
    if shared == 1:
        own = made.parts.network.blocks[1].feed_forward.shared_experts
        for theirs, ours in (("c_fc", own.w_in), ("c_proj", own.w_out)):
            for part in ("weight", "bias"):
                found = state[f"transformer.h.1.mlp.{theirs}.{part}"]
                np.testing.assert_array_equal(found, getattr(ours, part).asnumpy())
