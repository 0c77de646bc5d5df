"""YAML and `--set` to `Config`: what is accepted, and that every refusal names the key, the value and what to give."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import config_from_dict, load_config, save_config, to_dict
from pangu_sigma.config.schema import Config


def test_keys_left_out_take_their_defaults(write):
    config = load_config(write("model: {hidden_size: 64}\nmoe:\n"))
    assert config.model.hidden_size == 64
    assert config.model.num_heads == Config().model.num_heads
    assert config.moe == Config().moe


def test_overrides_apply_in_order_and_open_optional_sections(write):
    config = load_config(
        write("moe: {logical_topology: null}"),
        [
            "moe.logical_topology.world_size=4",
            "train.steps=5",
            "train.steps=7",
            "moe.domain_groups=[0, 1]",
            "data.prepare.sources.zh=texts/zh",
            "optimizer.clip_norm=null",
            "data.path=a=b",
        ],
    )
    assert config.moe.logical_topology.world_size == 4
    assert config.train.steps == 7
    assert config.moe.domain_groups == (0, 1)
    assert config.data.prepare.sources == {"zh": "texts/zh"}
    assert config.optimizer.clip_norm is None
    assert config.data.path == "a=b"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("+2.5e3", 2500.0),
        (".5e0", 0.5),
        ("3", 3.0),
        ("0.25", 0.25),
        ("1.0e-4", 1e-4),
    ],
)
def test_floats_in_every_usual_spelling(write, text, value):
    config = load_config(write(f"optimizer: {{learning_rate: {text}}}"))
    assert config.optimizer.learning_rate == value
    assert isinstance(config.optimizer.learning_rate, float)


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("model.hidden_siz=3", ["model.hidden_siz: unknown key", "model.hidden_size?"]),
        ("model.learning_rate=3", ["model.learning_rate: unknown key", "optimizer.learning_rate"]),
        ("moe.router.locmoe.gat=grap", ["moe.router.locmoe.gat: unknown key", "moe.router.locmoe.gate?"]),
        ("nonsense.x=3", ["nonsense: unknown key", "model, moe, parallel"]),
        ("model=3", ["model: found 3", "a section with keys hidden_size"]),
        ("model.hidden_size=wide", ["model.hidden_size: found 'wide'", "an integer >= 1"]),
        ("model.hidden_size=2.0", ["model.hidden_size: found 2.0", "an integer"]),
        ("model.hidden_size=true", ["model.hidden_size: found true", "an integer"]),
        ("model.hidden_size=null", ["model.hidden_size: found null", "an integer"]),
        ("model.hidden_size=0", ["model.hidden_size: found 0", ">= 1"]),
        ("model.hidden_size.x=1", ["model.hidden_size", "an integer"]),
        ("model.hidden_dropout=0.95", ["model.hidden_dropout: found 0.95", ">= 0.0 and <= 0.9"]),
        # A number of these that nobody means would fill the memory before it is found to fit nothing.
        ("model.sparse_layers=300000000", ["model.sparse_layers: found 300000000", "<= 10000"]),
        ("model.dense_layers=300000000", ["model.dense_layers: found 300000000", "<= 10000"]),
        ("moe.num_experts=1000000000", ["moe.num_experts: found 1000000000", "<= 1000000"]),
        ("model.init_std=0", ["model.init_std: found 0", "> 0.0"]),
        ("optimizer.learning_rate=.nan", ["optimizer.learning_rate: found nan", "a number > 0.0"]),
        ("optimizer.learning_rate=.inf", ["optimizer.learning_rate: found inf"]),
        ("optimizer.learning_rate=fast", ["optimizer.learning_rate: found 'fast'", "a number"]),
        ("optimizer.clip_norm=-1", ["optimizer.clip_norm: found -1", "> 0.0 or null"]),
        ("model.domain_embeddings=1", ["model.domain_embeddings: found 1", "true or false"]),
        ("data.path=3", ["data.path: found 3", "a string"]),
        ("moe.router.type=localmoe", ["moe.router.type: found 'localmoe'", "hash, locmoe, moge", "mean locmoe?"]),
        ("moe.domain_groups=1", ["moe.domain_groups: found 1", "a list"]),
        ("moe.domain_groups=[0, a]", ["moe.domain_groups[1]: found 'a'", "an integer"]),
        ("data.prepare.sources=[a]", ["data.prepare.sources: found ['a']", "a mapping"]),
        ("data.prepare.sources={no: a}", ["data.prepare.sources: found the key false", "quotes"]),
        ("data.prepare.sources.en=3", ["data.prepare.sources.en: found 3", "a string"]),
        ("train.recompute=0", ["train.recompute: found 0", "an integer >= 1"]),
        ("train.recompute=-3", ["train.recompute: found -3", "an integer >= 1"]),
        ("train.recompute=al", ["train.recompute: found 'al'", "attention, sparse, all", "or a number of layers"]),
        ("train.recompute=1.5", ["train.recompute: found 1.5", "one of none, attention, sparse, all"]),
        ("train.recompute=true", ["train.recompute: found true", "one of none, attention, sparse, all"]),
        ("train.recompute=null", ["train.recompute: found null", "one of none, attention, sparse, all"]),
        ("train.steps", ["'train.steps'", "expected key.path=value"]),
        ("train..steps=3", ["'train..steps=3'", "expected key.path=value"]),
        ("train.steps=[3", ["--set train.steps=[3", "not valid YAML"]),
    ],
)
def test_a_wrong_override_is_one_line_that_names_it(write, override, fragments):
    with pytest.raises(InputError) as caught:
        load_config(write("{}"), [override])
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


# Nine to the power of thirty x, if it were written out.
BOMB = b"model:\n  hidden_size:\n    a0: &a0 [x]\n" + b"".join(
    b"    a%d: &a%d [%s]\n" % (level, level, b", ".join([b"*a%d" % (level - 1)] * 9)) for level in range(1, 30)
)


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ["config.yaml: the file is empty"]),
        (b"- a\n- b\n", ["config.yaml: found ['a', 'b'] at top level", "mapping"]),
        (b"model: {\xff\xfe}", ["config.yaml: not UTF-8 text (byte 8)"]),
        (b"\xef\xbb\xbfmodel: 1\n  train: 2\n", ["config.yaml: line 2", "not valid YAML"]),
        (b"train:\n  steps: 1\n  steps: 2\n", ["config.yaml: line 3", "key 'steps' is given twice"]),
        (b"train: !!python/object/apply:os.getcwd []", ["config.yaml", "not valid YAML"]),
        (b"--- {}\n--- {}\n", ["config.yaml", "not valid YAML"]),
        (b"[" * 3000, ["config.yaml", "not valid YAML"]),
        (b"? [a, b]\n: 1\n", ["config.yaml", "not valid YAML"]),
        (b"train: {steps: 2024-13-45}", ["train.steps: found '2024-13-45', expected an integer"]),
        (b"1: 2", ["1: unknown key"]),
        (b"train: {steps: !!bool maybe}", ["config.yaml", "not valid YAML"]),
        (b"train: {steps: !!int ''}", ["config.yaml", "not valid YAML"]),
        (b"train: {steps: !!timestamp soon}", ["config.yaml", "not valid YAML"]),
        (
            b"train: {steps: 0x" + b"f" * 5000 + b"}",
            ["config.yaml: found '0xfff", "as an integer of 20000 bits; expected decimal"],
        ),
        (b"? 0x" + b"f" * 5000 + b"\n: 1", ["config.yaml: line 1: found '0xfff", "an integer of 20000 bits"]),
        (
            b"train: {steps: " + b"7" * 5000 + b"}",
            ["config.yaml: found an integer of 5000 digits, expected one of 64 bits"],
        ),
        (
            b"train: {steps: " + b"7" * 400 + b"}",
            ["train.steps: found an integer of 1329 bits, expected an integer of 64 bits >= 1"],
        ),
        (
            b"a: &a {x: 1}\nb: {<<: *a, <<: *a}",
            ["config.yaml: line 2", "key '<<' is given twice; expected one with a list"],
        ),
        (b"x: &x {<<: *x, a: 1}\n", ["x: unknown key"]),
        (b"x: {<<: 5}\n", ["config.yaml: not valid YAML: expected a mapping or a list of mappings after <<"]),
        (b"x: {<<: [{}, 5]}\n", ["config.yaml: not valid YAML: expected a mapping or a list of mappings after <<"]),
        (
            b"m: &m0 {a: 1}\n"
            + b"".join(b"m%d: &m%d {<<: [%s]}\n" % (n, n, b", ".join([b"*m%d" % (n - 1)] * 9)) for n in range(1, 40)),
            ["m: unknown key"],
        ),
        (b"a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}", ["config.yaml: line 2", "key 'y' is given twice"]),
        (b"data:\n  path: '\\ud83d'\n  placement: \"\\ud83d\"\n", ["data.placement: found '\\ud83d', expected"]),
        (b'data: {path: "a\\0b"}', ["data.path: found 'a\\x00b'", "no NUL"]),
        (b'data: {prepare: {sources: {en: "\\ud800"}}}', ["data.prepare.sources: found 'en': '\\ud800'", "UTF-8"]),
        (BOMB, ["model.hidden_size: found {'a0': ['x'], 'a1': [['x'], ['x'], ['x']", "..., expected an integer"]),
        (b"train: &a {steps: *a}", ["train.steps: found {"]),
        (
            b"model: &a [&b [x, x, x, x, x, x, x, x, x], *b, *b, *b, *b, *b, *b, *b, *b, *b]",
            ["model: found [['x'", "..., expected a section"],
        ),
    ],
)
def test_a_broken_file_is_named(write, content, fragments):
    with pytest.raises(InputError) as caught:
        load_config(write(content))
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="absent.yaml: cannot be read"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match=r"cannot be read \(is a directory\)"):
        load_config(tmp_path)


@pytest.mark.parametrize(("text", "value"), [("all", "all"), ("none", "none"), ("'attention'", "attention"), ("3", 3)])
def test_a_word_or_a_number(write, tmp_path, text, value):
    config = load_config(write(f"train: {{recompute: {text}}}"))
    assert config.train.recompute == value
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_a_saved_configuration_reads_back_the_same(tmp_path):
    config = config_from_dict(
        {
            "moe": {"logical_topology": {"world_size": 4}, "domain_groups": [0, 0]},
            "data": {"prepare": {"sources": {"中文": "文/本"}}},
        }
    )
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert [path.name for path in tmp_path.iterdir()] == ["saved.yaml"]


TEXT = st.text(min_size=1).filter(lambda text: "\0" not in text)


@settings(deadline=None)  # a busy machine takes its time
@given(rate=st.floats(min_value=1e-300, max_value=1e300), path=TEXT, domain=TEXT)
def test_any_value_survives_yaml(rate, path, domain):
    raw = {"optimizer": {"learning_rate": rate}, "data": {"path": path, "prepare": {"sources": {domain: path}}}}
    config = config_from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config_from_dict(raw)))))
    assert math.isclose(config.optimizer.learning_rate, rate, rel_tol=0.0)
    assert config.data.path == path
    assert config.data.prepare.sources == {domain: path}


def test_what_an_entry_leaves_out_is_as_in_moe_router():
    config = config_from_dict(
        {
            "model": {"sparse_layers": 3},
            "moe": {
                "router": {"type": "switch", "hash": {"balance": "frequency"}, "switch": {"jitter": 0.2}},
                "routers": [{"layers": [0], "type": "hash", "hash": {"weights": "gate"}}, {"layers": [2]}],
            },
        }
    )
    hashed, other = config.moe.routers
    assert (hashed.hash.balance, hashed.hash.weights) == ("frequency", "gate")
    assert (other.type, other.switch.jitter, other.hash) == ("switch", 0.2, None)
    written = to_dict(config)["moe"]["routers"]
    assert [sorted(entry) for entry in written] == [
        ["hash", "layers", "locality_bias", "type"],
        ["layers", "locality_bias", "switch", "type"],
    ]
    assert config_from_dict(to_dict(config)) == config  # the same once more, whatever moe.router has then


def test_entries_can_be_given_on_the_command_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: {sparse_layers: 2}\n")
    config = load_config(path, ["moe.routers=[{layers: [1], type: hash, hash: {balance: frequency}}]"])
    assert config.moe.routers[0].hash.balance == "frequency" and config.moe.routers[0].layers == (1,)
