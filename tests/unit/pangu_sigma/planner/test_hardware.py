"""Reading hardware and cluster files: strictly, and every figure with its origin."""

import re

import pytest
import yaml

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.planner.cluster import cluster_from_file, cluster_of
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
        ("steps", 3, "steps: unknown key, expected one of name, devices_per_node"),
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


@pytest.mark.parametrize(
    ("given", "parallel", "expected"),
    [
        ((None, None), {}, (1, 1)),
        ((3, None), {}, (3, 1)),
        ((None, 4), {"expert": 8}, (2, 4)),
        ((None, None), {"expert": 4, "tensor": 2, "ranks_per_node": 2}, (4, 2)),
        ((2, 2), {"ranks_per_node": 2}, (2, 2)),
    ],
)
def test_clusters_of_the_command_line(given, parallel, expected):
    """Without numbers: the configuration's ranks a node, else the hardware's; as many nodes as hold the experts once."""
    cluster = cluster_of(config_from_dict({"parallel": parallel}), *given, "cpu")
    assert (cluster.nodes, cluster.devices_per_node) == expected


def test_hardware_follows_the_device():
    assert cluster_of(config_from_dict({"runtime": {"device": "ascend"}}), 1, None, None).hardware.name == "Ascend 910A"
    assert cluster_of(config_from_dict({"runtime": {"device": "cpu"}}), 1, None, None).hardware.name == "2-core CPU"


def test_a_cluster_file_may_have_a_network_of_its_own(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "nodes: 4\ndevices_per_node: 8\nhardware: 910b\n"
        "network: {bandwidth_gb_s: {value: 5, source: measured}, latency_us: {value: 9, assumption: true}}\n"
    )
    cluster = cluster_from_file(Config(), str(file), None)
    assert (cluster.nodes, cluster.devices_per_node, cluster.hardware.name) == (4, 8, "Ascend 910B")
    assert cluster.hardware.network.bandwidth_gb_s.value == 5.0
    assert cluster.hardware.node == load_hardware("910b").node


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("nodes: 0", "nodes: found 0, expected an integer >= 1"),
        ("node: 1", "node: unknown key, did you mean nodes?"),
        ("nodes: 2\nhardware: 910c", "hardware '910c': expected one of"),
        ("[1]", "found [1], expected a section"),
        ("network: {bandwidth_gb_s: {value: 5}}", "network.bandwidth_gb_s: found neither"),
    ],
)
def test_wrong_cluster_files_are_refused(tmp_path, text, fragment):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        cluster_from_file(Config(), str(file), None)
    assert fragment in str(error.value)


def test_degrees_of_a_node_must_agree():
    with pytest.raises(InputError, match="--devices-per-node is 4 and parallel.ranks_per_node 2; expected the same"):
        cluster_of(config_from_dict({"parallel": {"ranks_per_node": 2}}), 1, 4, "cpu")
