"""Declarations are read without MindSpore, and wrong ones are refused in one line that names the file."""

import subprocess
import sys
from pathlib import Path

import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.reference.spec import ROUTERS
from locmoe_ops.router_registry import (
    RouterCost,
    RouterSizes,
    add_router_file,
    load_router,
    remove_router,
    router_spec,
    routers,
)

HEAD = (
    "from dataclasses import dataclass\nfrom locmoe_ops.keys import key\n"
    "from locmoe_ops.router_registry import RouterSpec\n"
)
GOOD = (
    HEAD
    + """
LIMIT = 3
HIGH: int = 2 * LIMIT


@dataclass(frozen=True)
class Own:
    steps: int = key(LIMIT, "some", maximum=HIGH)


ROUTER = RouterSpec(Own, top_k=2)
"""
)


def test_every_router_of_the_reference_is_registered_and_loads():
    """But for `replay`, which has no rule: its twin is `locmoe_ops.reference.replay`."""
    assert sorted(routers()) == sorted([*ROUTERS, "replay"])
    for name in routers():
        assert callable(load_router(name).build)


def test_a_file_is_imported_whole_and_under_its_name(tmp_path):
    (tmp_path / "mine.py").write_text(GOOD)
    add_router_file(str(tmp_path / "mine.py"))
    try:
        spec = router_spec("mine")
        assert (spec.options().steps, spec.top_k, spec.selection_biases) == (3, 2, ())
        assert routers()["mine"].external and routers()["mine"].origin == str(tmp_path / "mine.py")
    finally:
        remove_router("mine")
    assert "mine" not in routers()


def test_a_configuration_is_read_without_mindspore():
    code = (
        "import sys; from pangu_sigma.config.load import load_config; load_config('configs/two_domains.yaml'); "
        "assert 'mindspore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).resolve().parents[3])


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
        ("topk", {}, {"gate.weight": (8, 32)}, 256, "asked"),
        ("moge", {"aux_loss_weight": 0.0}, {"gate.weight": (8, 32)}, 256, "none"),
        ("smile", {"num_nodes": 2}, {"gate.weight": (8, 32)}, 256, "asked"),  # of each group two nodes, two experts
        ("smile", {}, {"gate.weight": (10, 32)}, 320, "asked"),
        ("c2r", {}, {"gate.weight": (8, 32)}, 256, "asked"),
    ],
)
def test_costs(name, values, weights, products, statistics):
    """32 features, two groups of four experts."""
    spec = router_spec(name)
    assert spec.cost(spec.options(**values), RouterSizes(32, 8, 2)) == RouterCost(weights, products, statistics)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("x = (\n", "it cannot be imported (SyntaxError"),
        ("x = 1\n", "it declares no router"),
        ("ROUTER = missing\n", "it cannot be imported (NameError"),
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
            HEAD + "ROUTER = RouterSpec(selection_biases=('speed',))\n",
            "selection_biases hold 'speed', expected some of locality_bias, balance_rate",
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
