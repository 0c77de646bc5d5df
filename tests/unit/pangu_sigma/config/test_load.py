"""YAML and `--set` to `Config`: what is accepted, and that every refusal names the key, the value and what to give."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import config_from_dict, load_config, save_config, to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.config.strict_yaml import parse_yaml


@pytest.fixture
def write(tmp_path):
    def _write(text):
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return path

    return _write


def test_keys_left_out_take_their_defaults(write):
    config = load_config(write("model: {hidden_size: 64}\nmoe:\n"))
    assert config.model.hidden_size == 64
    assert config.model.num_heads == Config().model.num_heads
    assert config.moe == Config().moe


def test_overrides_apply_in_order_and_open_optional_sections(write):
    config = load_config(
        write("moe: {layout: null}"),
        [
            "moe.layout.world_size=4",
            "train.steps=5",
            "train.steps=7",
            "moe.domain_groups=[0, 1]",
            "data.prepare.sources.zh=texts/zh",
            "optimizer.clip_norm=null",
            "data.path=a=b",
        ],
    )
    assert config.moe.layout.world_size == 4
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
        ("model.init_std=0", ["model.init_std: found 0", "> 0.0"]),
        ("optimizer.learning_rate=.nan", ["optimizer.learning_rate: found nan", "a number > 0.0"]),
        ("optimizer.learning_rate=.inf", ["optimizer.learning_rate: found inf"]),
        ("optimizer.learning_rate=fast", ["optimizer.learning_rate: found 'fast'", "a number"]),
        ("optimizer.clip_norm=-1", ["optimizer.clip_norm: found -1", "> 0.0 or null"]),
        ("model.domain_embeddings=1", ["model.domain_embeddings: found 1", "true or false"]),
        ("data.path=3", ["data.path: found 3", "a string"]),
        ("moe.router.type=localmoe", ["moe.router.type: found 'localmoe'", "hash, locmoe, switch", "mean locmoe?"]),
        ("moe.domain_groups=1", ["moe.domain_groups: found 1", "a list"]),
        ("moe.domain_groups=[0, a]", ["moe.domain_groups[1]: found 'a'", "an integer"]),
        ("data.prepare.sources=[a]", ["data.prepare.sources: found ['a']", "a mapping"]),
        ("data.prepare.sources={no: a}", ["data.prepare.sources: found the key false", "quotes"]),
        ("data.prepare.sources.en=3", ["data.prepare.sources.en: found 3", "a string"]),
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


# As written; what YAML 1.1 makes of it, or "text" where it stays a text; what is offered.
NUMBERS = [
    ("0100", "64", "100 or 64"),
    ("010", "8", "10 or 8"),
    ("00", "0", "0"),
    ("-012", "-10", "-12 or -10"),
    ("0_10", "8", "10 or 8"),
    ("1:30", "90", "90"),
    ("1:30:00", "5400", "5400"),
    ("0x1F", "31", "31"),
    ("0b101", "5", "5"),
    ("1_000", "1000", "1000"),
    ("1__0", "10", "10"),
    ("1_0_", "10", "10"),
    ("+0x10", "16", "16"),
    ("08", "text", "8"),
    ("0o17", "text", "15"),
    ("0O17", "text", "15"),
    ("1e3", "text", "1000"),
    ("1.5e1", "text", "15"),
    ("'100'", "text", "100"),
    ('" 12 "', "text", "12"),
    ("１２", "text", "12"),
    ("1,5", "text", None),
    ("0x", "text", None),
    ("1:60", "text", None),
    ("1e400", "text", None),
    ("nan", "text", None),
    ("inf", "text", None),
    ("2024-01-01", "text", None),
    ("12:30:61", "text", None),
    ("1e999999999", "text", None),
    ("7" * 39, None, None),
]


@pytest.mark.parametrize(("written", "read", "offered"), NUMBERS)
def test_a_number_that_is_not_in_decimal_digits_is_refused(write, written, read, offered):
    for content, overrides, where in (
        ("{}", [f"train.steps={written}"], "--set train.steps"),
        (f"model:\n  hidden_size: 8\ntrain:\n  steps: {written}\n", [], "line 4: "),
    ):
        with pytest.raises(InputError) as caught:
            load_config(write(content), overrides)
        message = str(caught.value)
        assert "\n" not in message
        if read in ("text", None):
            assert message.startswith("train.steps: found ") and (
                offered is None or message.endswith(f">= 1, as in {offered}")
            )
            assert offered is not None or ", as in" not in message
        else:
            assert (
                where in message
                and f"found '{written}', which YAML 1.1 reads as {read}; expected decimal digits" in message
            )
            assert f"as in {offered}, or quotes" in message


@pytest.mark.parametrize("written", ["0100", "1_000", "0x1F", "1:30"])
@pytest.mark.parametrize(
    "place",
    [
        "data: {{prepare: {{sources: {{{}: a}}}}}}",
        "moe: {{domain_groups: [0, {}]}}",
        "data: {{path: {}}}",
        "{}: 1",
        "optimizer: {{learning_rate: {}}}",
        "x: [[{{a: {}}}]]",
    ],
)
def test_they_are_refused_wherever_they_stand(write, written, place):
    with pytest.raises(InputError, match=f"config.yaml: found '{written}', which YAML 1.1 reads as"):
        load_config(write(place.format(written)))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("1_000.5", "found '1_000.5', which YAML 1.1 reads as 1000.5; expected decimal digits, as in 1000.5"),
        ("1:30.5", "found '1:30.5', which YAML 1.1 reads as 90.5"),
        ("010.5", None),
        ("-0.0", "optimizer.learning_rate: found -0.0, expected a number > 0.0"),
        (".inf", "optimizer.learning_rate: found inf, expected a number > 0.0"),
        ("-.INF", "found -inf"),
        (".NaN", "found nan"),
        ("1e400", "found '1e400', expected a number that double precision can hold"),
        ("1.0e+400", "found '1.0e+400', expected a number that double precision can hold"),
        ("1e-400", "found '1e-400', expected a number that double precision can hold"),
        ("1.0e-400", "found '1.0e-400', expected a number that double precision can hold"),
        ("0x10", "found '0x10', which YAML 1.1 reads as 16"),
        ("'0.5'", "found '0.5', expected a number > 0.0, as in 0.5"),
        ("nan", "found 'nan', expected a number > 0.0"),
        ("infinity", "found 'infinity', expected a number > 0.0"),
        ("0x1p3", "found '0x1p3', expected a number"),
        ("0,5", "found '0,5', expected a number"),
        ("1e-4", None),
        ("1E-4", None),
        ("5.", None),
        (".5", None),
        ("+1.5", None),
        ("12e-3", None),
        ("1.0e-4", None),
        ("3", None),
    ],
)
def test_floats_that_are_lost_or_read_otherwise_are_refused(write, written, message):
    if message is None:
        assert load_config(write("{}"), [f"optimizer.learning_rate={written}"]).optimizer.learning_rate == float(
            written
        )
        return
    with pytest.raises(InputError) as caught:
        load_config(write("{}"), [f"optimizer.learning_rate={written}"])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01 10:00:00", "2024-01-01 10:00:00"),
        ("v1.10", "v1.10"),
        ("1.10.0", "1.10.0"),
        ("'0100'", "0100"),
        ('"1.10"', "1.10"),
        ("08", "08"),
        ("0o17", "0o17"),
        ("1e3", "1e3"),
        ("10.0.0.1", "10.0.0.1"),
        ("runs/10:30", "runs/10:30"),
        ("_1", "_1"),
        ("1e400", "1e400"),
    ],
)
def test_texts_that_look_like_numbers_stay_as_they_are(write, written, text, tmp_path):
    config = load_config(write(f"train: {{output_dir: {written}}}"), [f"data.path={written}"])
    assert (config.train.output_dir, config.data.path) == (text, text)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize("written", ["1.10", "100", "true", "no", "1e+3.", "+5"])
def test_a_number_where_a_text_belongs_is_asked_to_stand_in_quotes(write, written):
    value = yaml.safe_load(written)
    if isinstance(value, str):
        assert load_config(write("{}"), [f"data.path={written}"]).data.path == value
        return
    for override in (f"data.path={written}", f"data.prepare.sources.en={written}"):
        with pytest.raises(InputError, match=r"expected a string \(in quotes\)"):
            load_config(write("{}"), [override])


MERGED = """
small: &small {hidden_size: 8, num_heads: 2}
wide: &wide {<<: *small, hidden_size: 16}
"""


@pytest.mark.parametrize(
    ("model", "hidden_size", "num_heads"),
    [
        ("{<<: *small}", 8, 2),
        ("{<<: *small, hidden_size: 32}", 32, 2),
        ("{hidden_size: 32, <<: *small}", 32, 2),
        ("{<<: *wide}", 16, 2),
        ("{<<: [*wide, *small]}", 16, 2),
        ("{<<: [*small, *wide]}", 8, 2),
        ("{<<: [{hidden_size: 9}, *small], num_heads: 3}", 9, 3),
        ("{<<: [*small, *wide], num_heads: 4}", 8, 4),
        ("{<<: *wide, hidden_size: 64}", 64, 2),
    ],
)
def test_a_merge_key_is_overridden_by_the_mapping_itself(model, hidden_size, num_heads):
    read = parse_yaml(f"{MERGED}model: {model}\nagain: *wide\n", "config.yaml")
    assert read["model"] == {"hidden_size": hidden_size, "num_heads": num_heads}
    assert read["again"] == {"hidden_size": 16, "num_heads": 2}


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


def test_a_saved_configuration_reads_back_the_same(tmp_path):
    config = config_from_dict(
        {
            "moe": {"layout": {"world_size": 4}, "domain_groups": [0, 0]},
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
