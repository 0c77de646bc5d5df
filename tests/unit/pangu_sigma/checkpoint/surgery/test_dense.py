"""PanGu-alpha's own files: its names and layouts, and its network in NumPy, written from its description, key biases
and all.
"""

import numpy as np
import pytest
from scipy import special

from mindspore import Tensor, load_checkpoint, save_checkpoint

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.surgery.dense import PanguAlpha
from pangu_sigma.checkpoint.surgery.inherit import inherit
from pangu_sigma.inference.export_dense import export_mindformers

D, HEADS, INNER, WORDS, LENGTH, LAYERS = 16, 2, 20, 320, 48, 2
BACKBONE = "backbone.embedding."


def block_shapes(prefix):
    shapes = {
        "layernorm1.gamma": (D,),
        "layernorm1.beta": (D,),
        "layernorm2.gamma": (D,),
        "layernorm2.beta": (D,),
        "attention.projection.weight": (D, D),
        "attention.projection.bias": (D,),
        "output.mapping.weight": (D, INNER),
        "output.mapping.bias": (INNER,),
        "output.projection.weight": (INNER, D),
        "output.projection.bias": (D,),
    }
    for number in (1, 2, 3):
        shapes.update({f"attention.dense{number}.weight": (D, D), f"attention.dense{number}.bias": (D,)})
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def alpha():
    """Random parameters by PanGu-alpha's names."""
    shapes = {
        f"{BACKBONE}word_embedding.embedding_table": (WORDS, D),
        f"{BACKBONE}position_embedding.embedding_table": (LENGTH, D),
        "backbone.top_query_embedding.embedding_table": (LENGTH, D),
        "backbone.layernorm.gamma": (D,),
        "backbone.layernorm.beta": (D,),
        **block_shapes("backbone.top_query_layer"),
    }
    for layer in range(LAYERS):
        shapes.update(block_shapes(f"backbone.blocks.{layer}"))
    rng = np.random.default_rng(0)
    return {
        name: (float(name.endswith("gamma")) + 0.3 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write(path, parameters):
    extra = {"adam_m.backbone.layernorm.gamma": np.zeros(D, np.float32), "step_num": np.int32(7).reshape(1)}
    save_checkpoint(
        [{"name": name, "data": Tensor(value)} for name, value in {**parameters, **extra}.items()], str(path)
    )
    return path


NONLINEAR = {
    "fast_gelu": lambda x: x * special.expit(1.702 * x),
    "gelu_tanh": lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: x * special.ndtr(x),
}


def logits(parameters, ids, final_norm, activation="fast_gelu"):
    """<float64>[S, V] of one row of one document."""
    p = {name: value.astype(np.float64) for name, value in parameters.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.gamma"] + p[f"{name}.beta"]

    def attend(asks, told, name):
        query = asks @ p[f"{name}.dense1.weight"].T + p[f"{name}.dense1.bias"]
        key, value = (told @ p[f"{name}.dense{n}.weight"].T + p[f"{name}.dense{n}.bias"] for n in (2, 3))
        mixed = np.empty_like(query)
        for head in range(HEADS):
            part = slice(head * D // HEADS, (head + 1) * D // HEADS)
            scores = query[:, part] @ key[:, part].T / np.sqrt(D / HEADS)
            scores[np.triu_indices(len(ids), 1)] = -np.inf
            mixed[:, part] = special.softmax(scores, -1) @ value[:, part]
        return mixed @ p[f"{name}.projection.weight"] + p[f"{name}.projection.bias"]

    def feed_forward(x, name):
        inner = x @ p[f"{name}.mapping.weight"] + p[f"{name}.mapping.bias"]
        return NONLINEAR[activation](inner) @ p[f"{name}.projection.weight"] + p[f"{name}.projection.bias"]

    words = p[f"{BACKBONE}word_embedding.embedding_table"]
    x = words[ids] + p[f"{BACKBONE}position_embedding.embedding_table"]
    for layer in range(LAYERS):
        name = f"backbone.blocks.{layer}"
        normed = norm(x, f"{name}.layernorm1")
        x = x + attend(normed, normed, f"{name}.attention")
        x = x + feed_forward(norm(x, f"{name}.layernorm2"), f"{name}.output")
    x = norm(x, "backbone.layernorm") if final_norm == "before_query" else x
    name = "backbone.top_query_layer"
    x = x + attend(
        p["backbone.top_query_embedding.embedding_table"], norm(x, f"{name}.layernorm1"), f"{name}.attention"
    )
    x = x + feed_forward(norm(x, f"{name}.layernorm2"), f"{name}.output")
    x = norm(x, "backbone.layernorm") if final_norm == "after_query" else x
    return x @ words.T


@pytest.mark.parametrize(
    ("final_norm", "activation"),
    [
        ("before_query", "fast_gelu"),
        ("after_query", "fast_gelu"),
        ("before_query", "gelu_tanh"),
        ("after_query", "gelu"),
    ],
)
def test_the_heir_computes_what_pangu_alpha_does(workshop, alpha, tmp_path, capsys, final_norm, activation):
    """With the activation that the configuration names, as the file names none; one line says so."""
    config = workshop.config(
        {
            "dense_layers": 1,
            "sparse_layers": 1,
            "activation": activation,
            "final_norm": final_norm,
            "domain_embeddings": True,
        },
        {"scale_by_gate": False, "router": {"type": "switch"}},
    )
    inherit(PanguAlpha(write(tmp_path / "alpha.ckpt", alpha), final_norm), str(tmp_path / "grown"), config)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("pangu-sigma: warning: ") and f"so model.activation decides: {activation}." in warning
    assert "fast_gelu, and gelu in its tanh form (gelu_tanh here)" in warning
    model = workshop.load(config, tmp_path / "grown")
    ids = np.random.default_rng(1).integers(0, WORDS, (3, LENGTH)).astype(np.int32)
    found = one_document(model, ids).reshape(3, LENGTH, WORDS)
    for row in range(3):
        expected = logits(alpha, ids[row], final_norm, activation)
        # float32 rounds at 6e-8; a few layers deep a few tens of that remain.
        assert np.abs(found[row] - expected).max() < 1e-5 * np.abs(expected).max()
    for other in (
        logits(alpha, ids[0], "after_query" if final_norm == "before_query" else "before_query", activation),
        *(logits(alpha, ids[0], final_norm, one) for one in NONLINEAR if one != activation),
    ):
        assert np.abs(found[0] - other).max() > 1e-4 * np.abs(other).max()


def one_document(model, ids):
    rows = len(ids)
    place, zeros = np.tile(np.arange(LENGTH, dtype=np.int32), (rows, 1)), np.zeros(rows, np.int32)
    model.parts.network.set_train(False)
    inputs = (ids, place, np.zeros_like(ids), np.array([0, 1, 0], np.int32), zeros, zeros)
    return model.parts.network(*(Tensor(array) for array in inputs))[0].asnumpy()


def test_older_names_and_tables_beside_the_file(alpha, tmp_path):
    """`backbone.word_embedding...` as the first release has it; position and query tables as arrays of their own."""
    older = dict(alpha)
    older["backbone.word_embedding.embedding_table"] = older.pop(f"{BACKBONE}word_embedding.embedding_table")
    np.save(tmp_path / "position_embedding.npy", older.pop(f"{BACKBONE}position_embedding.embedding_table"))
    np.save(tmp_path / "top_query_embedding.npy", older.pop("backbone.top_query_embedding.embedding_table"))
    now = PanguAlpha(write(tmp_path / "new.ckpt", alpha), "before_query")
    (tmp_path / "sub").mkdir()
    then = PanguAlpha(write(tmp_path / "old.ckpt", older), "before_query")
    assert sorted(then.names()) == sorted(now.names()) and now.layers() == LAYERS
    for name in now.names():
        np.testing.assert_array_equal(then.read(name), now.read(name), err_msg=name)


def test_half_precision_becomes_single(alpha, tmp_path):
    halves = {name: value.astype(np.float16) for name, value in alpha.items()}
    model = PanguAlpha(write(tmp_path / "half.ckpt", halves), "before_query")
    found = model.read("blocks.0.feed_forward.w_in.weight")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, halves["backbone.blocks.0.output.mapping.weight"].T.astype(np.float32))


def test_what_has_no_place_or_is_missing_is_named(workshop, alpha, tmp_path):
    more = {**alpha, "backbone.blocks.0.output.gate.weight": np.zeros(3, np.float32)}
    with pytest.raises(
        InputError, match="strange.ckpt: backbone.blocks.0.output.gate.weight is no parameter of PanGu-alpha"
    ):
        PanguAlpha(write(tmp_path / "strange.ckpt", more), "before_query")
    less = {name: value for name, value in alpha.items() if name != "backbone.blocks.1.attention.dense3.bias"}
    config = workshop.config(
        {"dense_layers": 1, "sparse_layers": 1, "activation": "fast_gelu"}, {"router": {"type": "hash"}}
    )
    with pytest.raises(InputError, match="less.ckpt: nothing for blocks.1.attention.value.bias"):
        inherit(PanguAlpha(write(tmp_path / "less.ckpt", less), "before_query"), str(tmp_path / "grown"), config)
    assert not list(tmp_path.glob("grown*"))
    (tmp_path / "no.ckpt").write_bytes(b"no protocol buffer")
    with pytest.raises(InputError, match=r"no.ckpt: cannot be read \(.*\); expected a MindSpore checkpoint"):
        PanguAlpha(tmp_path / "no.ckpt", "before_query")
    relu = workshop.config({"dense_layers": 1, "sparse_layers": 1, "activation": "relu"})
    with pytest.raises(
        InputError,
        match=r"model.activation is relu, which no PanGu-alpha has \(.*alpha.ckpt\); expected that of the code "
        "which trained it: fast_gelu, gelu_tanh, gelu",
    ):
        inherit(PanguAlpha(write(tmp_path / "alpha.ckpt", alpha), "before_query"), str(tmp_path / "grown"), relu)


def test_tables_beside_are_arrays_of_numbers_and_no_code(alpha, tmp_path):
    less = {name: value for name, value in alpha.items() if "position" not in name}
    np.save(tmp_path / "position_embedding.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(InputError, match="position_embedding.npy: cannot be read .*expected an array of numbers"):
        PanguAlpha(write(tmp_path / "alpha.ckpt", less), "before_query")


@pytest.mark.parametrize("final_norm", ["before_query", "after_query"])
def test_an_export_for_mindformers_has_its_names_and_its_function(workshop, alpha, tmp_path, final_norm):
    keys = {"dense_layers": 2, "sparse_layers": 0, "activation": "gelu_tanh", "final_norm": final_norm}
    model = workshop.random_model(workshop.config(keys))
    saved = workshop.save(model, tmp_path)
    export_mindformers(workshop.config(keys, checkpoint={"resume": str(saved)}), tmp_path / "out")
    stored = {n: v.asnumpy() for n, v in load_checkpoint(str(tmp_path / "out" / "pangu_alpha.ckpt")).items()}
    assert {name: value.shape for name, value in stored.items()} == {name: v.shape for name, v in alpha.items()}
    ids = np.random.default_rng(1).integers(0, WORDS, (3, LENGTH)).astype(np.int32)
    found, expected = (
        one_document(model, ids).reshape(3, LENGTH, WORDS),
        logits(stored, ids[1], final_norm, "gelu_tanh"),
    )
    # As above: float32 against float64, a few layers deep.
    assert np.abs(found[1] - expected).max() < 1e-5 * np.abs(expected).max()
    # And back, to the bit.
    back = PanguAlpha(tmp_path / "out" / "pangu_alpha.ckpt", final_norm)
    own = {parameter.name: parameter.asnumpy() for parameter in model.parts.network.trainable_params()}
    assert sorted(back.names()) == sorted(own)
    for name, value in own.items():
        np.testing.assert_array_equal(back.read(name), value, err_msg=name)
