"""Reading hardware files: strictly, and every figure with its origin."""

import re

import pytest
import yaml

from locmoe_ops.errors import InputError
from pangu_sigma.planner.hardware import load_hardware, shipped_hardware


@pytest.fixture
def spoilt(tmp_path):
    """The path of a copy of the 910A file in which a key, given as a path of names, has another value."""

    def write(path, value):
        content = yaml.safe_load(open("configs/hardware/910a.yaml", encoding="utf-8"))
        section = content
        *names, last = path.split(".")
        for name in names:
            section = section[name]
        section[last] = value
        file = tmp_path / "machine.yaml"
        file.write_text(yaml.safe_dump(content))
        return str(file)

    return write


@pytest.mark.parametrize("name", ["910a", "910b", "cpu"])
def test_shipped_files_say_where_every_figure_is_from(name):
    """Counted in the text: as many values as sources and assumptions, and what is marked is what is reported."""
    assert name in shipped_hardware()
    text = open(f"configs/hardware/{name}.yaml", encoding="utf-8").read()
    assumed = len(re.findall(r"assumption: true", text))
    assert len(re.findall(r"\bvalue:", text)) == len(re.findall(r"\bsource:", text)) + assumed
    assert len(load_hardware(name).assumptions()) == assumed


def test_a_device_has_no_rate_for_a_precision_that_is_not_given():
    assert load_hardware("910a").peak_flops("fp16") == 256e12
    with pytest.raises(
        InputError,
        match="runtime.precision is bf16, for which hardware 'Ascend 910A' gives no peak_tflops; expected fp16",
    ):
        load_hardware("910a").peak_flops("bf16")


@pytest.mark.parametrize(
    ("path", "value", "fragment"),
    [
        ("compute.efficiency", {"value": 0.5}, "compute.efficiency: found neither source nor assumption"),
        (
            "compute.efficiency",
            {"value": 0.5, "source": "a", "assumption": True},
            "compute.efficiency: found both source and assumption",
        ),
        (
            "compute.efficiency",
            {"value": 0, "assumption": True},
            "compute.efficiency.value: found 0, expected a number above 0",
        ),
        (
            "compute.efficiency",
            0.5,
            "compute.efficiency: found 0.5, expected a section with keys value, source, assumption",
        ),
        ("compute.shared_by", "all", "compute.shared_by: found 'all', expected one of rank, node, machine"),
        ("netwrk", {}, "netwrk: unknown key, did you mean network?"),
        ("devices_per_node", 8, "devices_per_node: unknown key, did you mean ranks_per_node?"),
        ("steps", 3, "steps: unknown key, expected one of name, ranks_per_node"),
        ("island.size", 0, "island.size: found 0, expected an integer >= 1"),
        ("network.bandwidth_gb_s", {"value": -1, "assumption": True}, "network.bandwidth_gb_s.value: found -1"),
    ],
)
def test_wrong_files_are_refused(spoilt, path, value, fragment):
    file = spoilt(path, value)
    with pytest.raises(InputError) as error:
        load_hardware(file)
    assert str(error.value).startswith(file) and fragment in str(error.value)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="hardware 'tpu': expected one of 910a, 910b, cpu"):
        load_hardware("tpu")
