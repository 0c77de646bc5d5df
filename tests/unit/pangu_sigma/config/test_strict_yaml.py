"""Numbers, texts and merge keys of YAML as people write them: what is read, and what is refused with what to write."""

import pytest
import yaml

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import load_config, save_config
from pangu_sigma.config.strict_yaml import parse_yaml

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


def test_a_mapping_that_merged_another_is_merged_again():
    read = parse_yaml("all: [{one: &m {<<: {a: 1, b: 1}, a: 2}}, {<<: *m}, {<<: *m, a: 3}]\nmore: {<<: *m}\n", "c.yaml")
    assert read == {"all": [{"one": {"a": 2, "b": 1}}, {"a": 2, "b": 1}, {"a": 3, "b": 1}], "more": {"a": 2, "b": 1}}
