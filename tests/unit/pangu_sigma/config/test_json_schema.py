"""The schema for editors: it takes what ships, refuses what is wrong, and says of every key what the loader says."""

import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from locmoe_ops.errors import InputError
from pangu_sigma.config.json_schema import FILE, json_schema, schema_text
from pangu_sigma.config.load import config_from_dict, to_dict
from pangu_sigma.config.renamed import RENAMED
from pangu_sigma.config.schema import Config

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, which the docs extra brings")

REPOSITORY = Path(__file__).resolve().parents[4]
SHIPPED = [*(REPOSITORY / "configs").glob("*.yaml"), *(REPOSITORY / "configs" / "ascend").glob("*.yaml")]
MODELINE = re.compile(r"(?m)^# yaml-language-server: \$schema=(\S+)$")
VALUES = [
    None,
    True,
    -1,
    0,
    0.5,
    3,
    10**6,
    "",
    "x",
    "auto",
    "none",
    [],
    [1],
    [-1],
    ["x"],
    {},
    {"a": "b"},
    {"a": 1},
]


class _YAML12(yaml.SafeLoader):
    """As editors read it (YAML 1.2, core schema): 1e-4 is a number."""


_YAML12.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)$"), list("-+.0123456789")
)


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft7Validator.check_schema(json_schema())
    return jsonschema.Draft7Validator(json_schema())


def test_there_are_configurations():
    assert len(SHIPPED) >= 9


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_configuration_is_valid_and_leads_editors_to_the_schema(validator, path):
    text = path.read_text(encoding="utf-8")
    assert [error.message for error in validator.iter_errors(yaml.load(text, _YAML12))] == []  # noqa: S506
    (target,) = MODELINE.findall(text)
    assert (path.parent / target).resolve() == REPOSITORY / FILE


# Where in a configuration, what is put there, and what an editor says.
MUTATIONS = [
    ("modle", {}, "'modle' was unexpected"),
    ("model.hidden", 3, "'hidden' was unexpected"),
    ("moe.router.local_therm", {}, "'local_therm' was unexpected"),
    ("model", 3, "is not of type 'object', 'null'"),
    ("model.hidden_size", 0, "is less than the minimum of 1"),
    ("model.hidden_size", "wide", "is not of type 'integer'"),
    ("model.init_std", 0, "is less than or equal to the minimum of 0"),
    ("model.attention_dropout", 1, "is greater than the maximum of 0.9"),
    ("moe.router.type", "swich", "is not one of"),
    ("moe.domain_groups", [-1.5], "is not valid under any of the given schemas"),
    ("train.recompute", "some", "is not valid under any of the given schemas"),
    ("train.cosines", "yes", "is not of type 'boolean'"),
    ("data.prepare.sources", {"en": 3}, "is not of type 'string'"),
]


def with_value(raw, path, value):
    raw = section = deepcopy(raw)
    *above, name = path.split(".")
    for one in above:
        section[one] = section = section.get(one) or {}
    section[name] = value
    return raw


@pytest.mark.parametrize("file", SHIPPED, ids=lambda path: path.name)
@pytest.mark.parametrize(("path", "value", "message"), MUTATIONS)
def test_a_shipped_configuration_with_one_thing_wrong(validator, file, path, value, message):
    raw = with_value(yaml.load(file.read_text(encoding="utf-8"), _YAML12), path, value)  # noqa: S506
    (error,) = validator.iter_errors(raw)
    assert message in error.message


def test_a_former_name_says_what_it_is_now(monkeypatch):
    monkeypatch.setitem(RENAMED, "train.number", "train.steps")
    validator = jsonschema.Draft7Validator(json_schema())
    assert not validator.is_valid({"train": {"number": 3}}) and validator.is_valid({"train": {"steps": 3}})
    assert json_schema()["properties"]["train"]["properties"]["number"]["description"] == "is now train.steps"


def leaves(tree, prefix=""):
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")


def test_of_every_key_it_says_what_the_loader_says(validator):
    """Each key with values of every kind: one refuses what the other refuses."""
    keys = list(leaves(to_dict(Config())))
    assert len(keys) > 150
    differ = []
    for key in keys:
        for value in VALUES:
            raw = with_value({}, key, value)
            try:
                config_from_dict(deepcopy(raw))
                taken = True
            except InputError:
                taken = False
            differ += [(key, value)] if validator.is_valid(raw) != taken else []
    assert not differ


def test_defaults_and_meanings_are_those_of_the_keys():
    """All defaults together are the default configuration."""

    def defaults(schema):
        if "properties" in schema and "default" not in schema:
            keys = {name: inner for name, inner in schema["properties"].items() if "not" not in inner}  # former names
            return {name: defaults(inner) for name, inner in keys.items()}
        return schema["default"]

    schema = json.loads(schema_text())
    found = defaults(schema)
    expected = to_dict(Config())
    for path in ("moe.logical_topology", "moe.capacity.measured_share"):  # sections that are off
        *above, name = path.split(".")
        for tree in (found, expected):
            for one in above:
                tree = tree[one]
            del tree[name]
    assert config_from_dict(found) == Config() and found == expected
    assert schema["properties"]["train"]["properties"]["steps"]["description"] == "optimizer steps of the whole run"
