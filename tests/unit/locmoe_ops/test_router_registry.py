"""Declarations are read without the rest of their file, and wrong ones are refused in one line that names the file."""

import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.reference.spec import ROUTERS
from locmoe_ops.router_registry import (
    RouterCost,
    RouterSizes,
    add_router_file,
    load_router,
    read_declaration,
    remove_router,
    router_spec,
    routers,
)

HEAD = "from dataclasses import dataclass\nfrom locmoe_ops.keys import key\nfrom locmoe_ops.router_registry import RouterSpec\n"
GOOD = (
    HEAD
    + """
raise_at_import = undefined_name  # whatever the declaration does not need does not run
LIMIT = 3
HIGH: int = 2 * LIMIT


@dataclass(frozen=True)
class Own:
    steps: int = key(LIMIT, "some", maximum=HIGH)


ROUTER = RouterSpec(Own, top_k=2)
"""
)


def test_every_router_of_the_reference_is_registered_and_loads():
    assert sorted(routers()) == sorted(ROUTERS)
    for name in routers():
        assert callable(load_router(name).build)


def test_only_what_the_declaration_needs_is_run():
    kind = read_declaration(GOOD, "some/where.py")
    assert (kind.options().steps, kind.top_k, kind.terms) == (3, 2, ())
    assert read_declaration("import locmoe_ops.nothing_of_that_name\n", "some/where.py") is None


@pytest.mark.parametrize(
    ("name", "values", "weights", "products", "statistics"),
    [
        ("hash", {}, {}, 0, "none"),
        ("switch", {}, {"gate.weight": (8, 32)}, 256, "asked"),
        ("locmoe", {}, {}, 128, "node"),
        ("locmoe", {"gate": "dense"}, {"gate.weight": (8, 32)}, 256, "node"),
        ("locmoe", {"gate_input": "code"}, {}, 0, "node"),
        ("etr", {}, {}, 128, "node"),
        ("ta_moe", {}, {"gate.weight": (8, 32)}, 256, "node"),
    ],
)
def test_costs(name, values, weights, products, statistics):
    """32 features, two groups of four experts."""
    kind = router_spec(name)
    assert kind.cost(kind.options(**values), RouterSizes(32, 8, 2)) == RouterCost(weights, products, statistics)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("x = (\n", "ROUTER cannot be read (SyntaxError"),
        ("x = 1\n", "it declares no router"),
        ("ROUTER = missing\n", "ROUTER cannot be read (NameError"),
        ("ROUTER = 3\n", "ROUTER is a int, expected a RouterSpec"),
        (HEAD + "ROUTER = RouterSpec(dict)\n", "expected a frozen dataclass"),
        (
            HEAD + "@dataclass\nclass Own:\n    a: int = key(1, 'some')\nROUTER = RouterSpec(Own)\n",
            "expected a frozen dataclass",
        ),
        (
            HEAD + "@dataclass(frozen=True)\nclass Own:\n    a: int = 1\nROUTER = RouterSpec(Own)\n",
            "Own.a says nothing of itself",
        ),
        (
            HEAD + "ROUTER = RouterSpec(terms=('speed',))\n",
            "terms hold 'speed', expected some of local_term, balance_rate",
        ),
    ],
)
def test_wrong_declarations_are_refused(tmp_path, text, fragment):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        add_router_file(str(file))
    assert fragment in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_router_file_of_another_system(tmp_path):
    file = tmp_path / "marked.py"
    file.write_bytes(("\ufeff" + GOOD.replace("\n", "\r\n")).encode())
    assert add_router_file(str(file)) == "marked"
    remove_router("marked")


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("absent.py", "cannot be read .no such file"),
        ("hash.py", "there is a router hash already"),
        ("a-b.py", "file's name is the router"),
        ("mine.txt", "the file's name is the router"),
        ("class.py", "the file's name is the router"),
        ("top_k.py", "name is the router"),
    ],
)
def test_files_that_cannot_be_routers(tmp_path, name, fragment):
    if name != "absent.py":
        (tmp_path / name).write_text(HEAD + "ROUTER = RouterSpec()\n")
    with pytest.raises(InputError, match=fragment):
        add_router_file(str(tmp_path / name))


def test_a_file_without_build_is_refused_when_the_router_is_built(tmp_path):
    (tmp_path / "idle.py").write_text(HEAD + "ROUTER = RouterSpec()\n")
    add_router_file(str(tmp_path / "idle.py"))
    try:
        with pytest.raises(InputError, match="it has no function build"):
            load_router("idle")
    finally:
        remove_router("idle")


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(InputError, match=r"found 'lokmoe', expected one of .* \(did you mean locmoe\?\)"):
        router_spec("lokmoe")
