"""Whatever a configuration file or an override holds: a configuration that can be saved and read again, or one line
that says why not.
"""

import dataclasses
from typing import get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import load_config, save_config
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import validate

WORDS = [
    "model",
    "moe",
    "router",
    "train",
    "hidden_size",
    "steps",
    "output_dir",
    ": ",
    ":",
    ", ",
    "\n",
    "  ",
    "- ",
    "? ",
    "<<: ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "|\n",
    ">\n",
    '"',
    "'",
    "#",
    "%",
    "@",
    "`",
    "---\n",
    "...\n",
    "~",
    "0x",
    "0b",
    "0o",
    "1e999",
    ".inf",
    ".nan",
    "1:2:3.4",
    "2024-01-32",
    "\\ud800",
    "\\0",
    "\\x",
    "!!bool ",
    "!!int ",
    "!!float ",
    "!!null ",
    "!!timestamp ",
    "!!binary ",
    "!!set ",
    "!!omap ",
    "!!pairs ",
    "!!str ",
    "!!seq ",
    "!!map ",
    "!!python/object/apply:os.getcwd ",
    "!!python/name:os.system ",
    "!x ",
    "%YAML 1.1\n",
    "0x" + "f" * 5000,
]
YAML_TEXT = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=30).map("".join)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4)
    | st.sampled_from([2**63, -(2**63), "x" * 300, "a\nb"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def plausible(hint, limits):
    """Values of a key's own type, most of them within its limits."""
    if type(None) in get_args(hint):
        return st.none() | plausible(next(arm for arm in get_args(hint) if arm is not type(None)), limits)
    if int in get_args(hint):
        return plausible(int, {}) | plausible(str, limits)
    if "choices" in limits:
        return st.sampled_from(limits["choices"])
    if get_origin(hint) is tuple:
        return st.lists(plausible(get_args(hint)[0], {}), max_size=4)
    if get_origin(hint) is dict:
        return st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)
    return {
        bool: st.booleans(),
        str: st.text(max_size=8) | st.sampled_from(["auto", "a/../b", "/", ".", "~", "a\0b"]),
        int: st.sampled_from([0, 1, 2, 3, 4, 6, 8, 16, 64, 2**31, 2**62, 2**63 - 1]),
        float: st.sampled_from([0.0, 1e-300, 1e-4, 0.1, 0.5, 0.9, 1.0, 2.0, 8.0, 1e6, 1e300]),
    }[hint]


def keys(section, prefix=""):
    """Path and strategy of every key."""
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        hint = hints[field.name]
        arms = [arm for arm in (get_args(hint) or (hint,)) if dataclasses.is_dataclass(arm)]
        if arms:
            yield from keys(arms[0], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, plausible(hint, field.metadata)


KEYS = dict(keys(Config))
SETTING = st.sampled_from(sorted(KEYS)).flatmap(
    lambda path: st.tuples(st.just(path), st.one_of(*[KEYS[path]] * 9, ANYTHING))
)


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")

    def run(content, overrides=(), world_size=4):
        path = folder / "config.yaml"
        path.write_bytes(content)
        try:
            config = load_config(path, overrides)
            save_config(config, folder / "saved.yaml")
            assert load_config(folder / "saved.yaml") == config
            validate(config, world_size)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 4000

    return run


@settings(deadline=None)
@given(content=YAML_TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=40))
def test_any_text(check, content):
    check(content)


@settings(deadline=None)
@given(settings_=st.lists(SETTING, max_size=8), world_size=st.sampled_from([1, 2, 4, 8]))
def test_any_values(check, settings_, world_size):
    content = {}
    for path, value in settings_:
        *outer, last = path.split(".")
        section = content
        for name in outer:
            section = section.setdefault(name, {})
        section[last] = value
    check(yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass"), world_size=world_size)


@settings(deadline=None)
@given(
    overrides=st.lists(
        st.tuples(st.sampled_from(sorted(KEYS)) | st.text(max_size=8), YAML_TEXT).map("=".join) | st.text(max_size=20),
        max_size=3,
    )
)
def test_any_overrides(check, overrides):
    check(b"{}", overrides)
