"""Keys that were renamed: refused where people write them, read where this program wrote them."""

import pytest
import yaml

from locmoe_ops.errors import InputError
from pangu_sigma.compare.comparison import load_plan
from pangu_sigma.config import renamed
from pangu_sigma.config.load import load_config, to_dict
from pangu_sigma.config.renamed import with_new_names
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.run_folder import SAVED_CONFIG

REAL = dict(renamed.RENAMED)
# Made up: keys that were called otherwise, one of which moved to another section, and a section.
TABLE = {"train.number": "train.steps", "model.rate": "optimizer.learning_rate", "moe.slots": "moe.capacity"}
OLD = {"train": {"number": 7}, "model": {"rate": 0.5}, "moe": {"slots": {"factor": 3.0}, "num_experts": 4}}


@pytest.fixture(autouse=True)
def table(monkeypatch):
    monkeypatch.setattr(renamed, "RENAMED", TABLE)


@pytest.fixture
def write(tmp_path):
    def _write(content, first=""):
        path = tmp_path / "config.yaml"
        path.write_text(f"{first}\n{yaml.safe_dump(content)}")
        return path

    return _write


@pytest.mark.parametrize(
    ("old", "value", "line"),
    [
        ("train.number", 7, "train.number: this key is now train.steps; expected that name"),
        ("model.rate", 0.5, "model.rate: this key is now optimizer.learning_rate; expected that name"),
        ("moe.slots", {"factor": 3.0}, "moe.slots: this key is now moe.capacity; expected that name"),
        ("moe.slots.factor", 3.0, "moe.slots: this key is now moe.capacity; expected that name"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(write, tmp_path, old, value, line):
    """In a file, on the command line, also over a saved configuration, and in a comparison."""
    section = value
    for name in reversed(old.split(".")):
        section = {name: section}
    with pytest.raises(InputError, match=f"^{line}$"):
        load_config(write(section))
    for path in (write({}), write({}, SAVED_CONFIG)):
        with pytest.raises(InputError, match=f"^{line}$"):
            load_config(path, [f"{old}={value}"])
    (tmp_path / "base.yaml").write_text("{}")
    comparison = tmp_path / "compare.yaml"
    comparison.write_text(yaml.safe_dump({"base": str(tmp_path / "base.yaml"), "variants": {"a": {old: value}}}))
    with pytest.raises(InputError, match=line):
        load_plan(str(comparison))


def test_what_an_older_version_saved_is_read_under_the_new_names(write):
    config = load_config(write(OLD, SAVED_CONFIG))
    assert (config.train.steps, config.optimizer.learning_rate) == (7, 0.5)
    assert (config.moe.capacity.factor, config.moe.num_experts) == (3.0, 4)
    assert "number" in OLD["train"] and "slots" in OLD["moe"]  # what is given stays as it is


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, {}),
        ({"train": None}, {"train": None}),
        ({"train": {"number": 1, "steps": 2}}, {"train": {"number": 1, "steps": 2}}),  # which one counts?
        ({"model": {"rate": 1}, "optimizer": 3}, {"model": {"rate": 1}, "optimizer": 3}),
        ({"moe": {"slots": None}}, {"moe": {"capacity": None}}),
        ({"other": [1]}, {"other": [1]}),
    ],
)
def test_only_what_has_another_name_is_moved(raw, expected):
    found = {name: section for name, section in with_new_names(raw).items() if section != {}}
    assert found == expected


def test_names_of_now():
    """No key is called what another one once was, and what is told of is there."""

    def there(path):
        section = to_dict(Config())
        for name in path.split("."):
            if not isinstance(section, dict) or name not in section:
                return False
            section = section[name]
        return True

    assert all(there(new) and not there(old) for old, new in {**TABLE, **REAL}.items())
