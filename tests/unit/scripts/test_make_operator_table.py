"""The page of operators is what the installed MindSpore's Ascend plug-ins say, and they have all of its kernels."""

import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
PAGE = (REPOSITORY / "docs" / "operators.md").read_text(encoding="utf-8")
# The plug-ins of another MindSpore say other things; the page of that one is made by the script.
of_this_version = pytest.mark.skipif(
    f"MindSpore {version('mindspore')}*" not in PAGE, reason="docs/operators.md is of another MindSpore"
)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "make_operator_table", REPOSITORY / "scripts" / "make_operator_table.py"
    )
    module = importlib.util.module_from_spec(spec)
    before = [*sys.path]
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def package():
    return Path(importlib.util.find_spec("mindspore").origin).parent


# What MindSpore's documentation and sources say of them.
KNOWN = {
    "MatMul": ("aclnn", True),
    "GroupedMatmulV4": ("aclnn", False),  # mint's operators are not GE's
    "LayerNorm": ("aclop", True),
    "AllReduce": ("hccl", True),
    "AlltoAllVC": ("hccl", False),
    "AdamWeightDecay": ("rewritten", False),
    "NoSuchOperator": ("", False),
}


@of_this_version
def test_the_plug_ins_are_asked_by_name(script, package):
    assert {name: tuple(found) for name, found in script.ask(package, [*KNOWN]).items()} == KNOWN


@of_this_version
def test_what_the_sources_deprecate_is_read(script, package):
    found = script.deprecated(package)
    assert found["TensorScatterSub"] == "2.9.0"  # the function; the class says 2.10
    assert "MatMul" not in found


def test_deprecations_of_classes_methods_and_functions(script, tmp_path):
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "some.py").write_text(
        '@deprecated("2.10.0", None)\ndef scatter_it(x):\n    return x\n\n'
        '@deprecated("2.1", "B")\nclass A:\n    pass\n\n'
        'class ScatterIt:\n    @deprecated("2.9.0", None)\n    def __init__(self):\n        pass\n'
    )
    assert script.deprecated(tmp_path) == {"ScatterIt": "2.9.0", "A": "2.1"}


@of_this_version
def test_the_page_is_what_the_installed_wheel_says(script, package):
    found = script.ask(package, sorted(script.operators_of_page()))
    assert script.page(found, script.deprecated(package), script.sample_of_page()) == PAGE, f"run `{script.COMMAND}`"


def test_every_operator_of_the_page_has_a_kernel(script):
    columns = script.operators_of_page()
    assert len(columns) > 80  # a whole step's
    assert [name for name, (kernel, _, _) in columns.items() if kernel == "**none**"] == []
    assert [name for name, (_, _, deprecated) in columns.items() if deprecated] == []
