"""Clusters of the command line and of files: strictly, and with what the configuration says."""

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.planner.cluster import cluster_from_file, cluster_of
from pangu_sigma.planner.hardware import load_hardware


@pytest.mark.parametrize(
    ("given", "parallel", "expected"),
    [
        ((None, None), {}, (1, 1)),
        ((3, None), {}, (3, 1)),
        ((None, 4), {"expert": 8}, (2, 4)),
        ((None, None), {"expert": 4, "tensor": 2, "ranks_per_node": 2}, (4, 2)),
        ((2, 2), {"ranks_per_node": 2}, (2, 2)),
        ((None, None), {"expert": 4, "ranks_per_node": 2, "nodes": 6}, (6, 2)),
        ((3, None), {"expert": 4, "ranks_per_node": 2, "nodes": 6}, (3, 2)),
    ],
)
def test_clusters_of_the_command_line(given, parallel, expected):
    """Without numbers: the configuration's nodes and ranks a node; else the hardware's, and as many nodes as hold the
    experts once.
    """
    cluster = cluster_of(config_from_dict({"parallel": parallel}), *given, "cpu")
    assert (cluster.nodes, cluster.ranks_per_node) == expected


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ({"device": "cpu"}, "2-core CPU"),
        ({"device": "ascend"}, "Ascend 910B"),
        ({"device": "ascend", "chip": "910a"}, "Ascend 910A"),
        ({"device": "ascend", "chip": "910b"}, "Ascend 910B"),
    ],
)
def test_hardware_follows_the_device(runtime, expected):
    assert cluster_of(config_from_dict({"runtime": runtime}), 1, None, None).hardware.name == expected


def test_a_chip_without_a_shipped_file_wants_one():
    with pytest.raises(
        InputError, match="runtime.chip is 910c, of which no hardware file is shipped; expected --hardw"
    ):
        cluster_of(config_from_dict({"runtime": {"device": "ascend", "chip": "910c"}}), 1, None, None)


def test_a_cluster_file_may_have_a_network_of_its_own(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "nodes: 4\nranks_per_node: 8\nhardware: 910b\n"
        "network: {bandwidth_gb_s: {value: 5, source: measured}, latency_us: {value: 9, assumption: true}}\n"
    )
    cluster = cluster_from_file(Config(), str(file), None)
    assert (cluster.nodes, cluster.ranks_per_node, cluster.hardware.name) == (4, 8, "Ascend 910B")
    assert cluster.hardware.network.bandwidth_gb_s.value == 5.0
    assert cluster.hardware.node == load_hardware("910b").node


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("nodes: 0", "nodes: found 0, expected an integer >= 1"),
        ("node: 1", "node: unknown key, did you mean nodes?"),
        ("nodes: 2\ndevices_per_node: 8", "devices_per_node: unknown key, did you mean ranks_per_node?"),
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
    with pytest.raises(InputError, match="--ranks-per-node is 4 and parallel.ranks_per_node 2; expected the same"):
        cluster_of(config_from_dict({"parallel": {"ranks_per_node": 2}}), 1, 4, "cpu")
