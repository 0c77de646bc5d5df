"""The table of chips: complete, with sources, and the pure functions that read it."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from locmoe_ops.topology import GROUP_KINDS
from pangu_sigma.config.chips import (
    CHIPS,
    DEFAULT_CHIP,
    ChipRule,
    all_to_all_fault,
    chip_of_model,
    chip_of_soc,
    reads_status,
    saturates,
)
from pangu_sigma.config.derived import job_topology
from pangu_sigma.config.load import load_config
from pangu_sigma.config.schema_run import FusedConfig
from pangu_sigma.planner.hardware import load_hardware


@pytest.mark.parametrize("name", CHIPS)
def test_every_rule_has_a_source(name):
    rules = {field.name: getattr(CHIPS[name], field.name) for field in fields(CHIPS[name])}
    assert all(isinstance(rule, ChipRule) and len(rule.source) > 10 for rule in rules.values())
    assert set(rules["fused"].value) <= {field.name for field in fields(FusedConfig)}
    if rules["hardware"].value:
        assert load_hardware(rules["hardware"].value).chip == name
    assert DEFAULT_CHIP in CHIPS


@pytest.mark.parametrize(
    ("version", "chip"),
    [("ascend910", "910a"), ("ascend910b", "910b"), ("Ascend910B", "910b"), ("ascend910_93", "910c"), ("", None)]
    + [("ascend310p", None), ("ascend950", None)],
)
def test_mindspores_names(version, chip):
    assert chip_of_soc(version) == chip


@pytest.mark.parametrize(
    ("model", "chip"),
    [("910A", "910a"), ("910ProB", "910a"), ("910B3", "910b"), ("910B", "910b"), ("Ascend910_9392", "910c")]
    + [("310P3", None)],
)
def test_names_of_npu_smi(model, chip):
    assert chip_of_model(model) == chip


@pytest.mark.parametrize(
    ("chip", "mode", "expected"),
    [
        ("910a", None, True),
        ("910a", "INFNAN_MODE", True),  # it has no other
        ("910b", None, False),
        ("910b", "INFNAN_MODE", False),
        ("910b", "SATURATION_MODE", True),
        ("910c", "SATURATION_MODE", True),
        (None, "SATURATION_MODE", False),
    ],
)
def test_who_saturates(chip, mode, expected):
    assert saturates(chip, {} if mode is None else {"MS_ASCEND_CHECK_OVERFLOW_MODE": mode}) is expected
    assert reads_status(chip, "fp16", {} if mode is None else {"MS_ASCEND_CHECK_OVERFLOW_MODE": mode}) is expected
    assert not reads_status(chip, "fp32", {})


# ---- HCCL's all-to-all

CLUSTER, SAME, WHOLE, SEVERAL = (
    "two ranks of one server must lie in one cluster of 4 devices",
    "the same devices must take part in every server",
    "more than two ranks of one server must be whole clusters of 4 devices (0 to 3, 4 to 7)",
    "a group over several servers must be whole clusters of 4 devices (0 to 3, 4 to 7)",
)


@pytest.mark.parametrize(
    ("ranks", "ranks_per_node", "expected"),
    [
        ([5], 8, None),
        ([0, 3], 8, None),
        ([5, 6], 8, None),
        ([0, 4], 8, CLUSTER),
        ([3, 4], 8, CLUSTER),
        ([8, 11], 8, None),
        ([0, 1, 2, 3], 8, None),
        ([4, 5, 6, 7], 8, None),
        ([2, 3, 4, 5], 8, WHOLE),
        ([0, 2, 4, 6], 8, WHOLE),
        ([0, 1, 2], 8, WHOLE),
        ([*range(6)], 8, WHOLE),
        ([*range(8)], 8, None),
        ([*range(16)], 8, None),
        ([0, 1, 2, 3, 8, 9, 10, 11], 8, None),
        ([4, 5, 6, 7, 12, 13, 14, 15], 8, None),
        ([0, 1, 2, 3, 12, 13, 14, 15], 8, SAME),
        ([*range(12)], 8, SAME),
        ([0, 8], 8, SEVERAL),  # one rank a server: expert parallel beside tensor parallel 8
        ([0, 1, 8, 9], 8, SEVERAL),
        ([0, 4, 8, 12], 8, SEVERAL),
        ([*range(0, 128, 8)], 8, SEVERAL),
        ([0, 1], 4, None),  # nodes of four: halves of servers
        ([*range(8)], 4, None),
        ([3, 4], 4, CLUSTER),
        ([0, 4, 8, 12], 4, SEVERAL),
        ([0, 1, 2, 3], 2, SEVERAL),  # two servers of two ranks
    ],
)
def test_all_to_all_on_910a(ranks, ranks_per_node, expected):
    assert all_to_all_fault("910a", ranks, ranks_per_node) == expected
    assert all_to_all_fault("910b", ranks, ranks_per_node) is None


def allowed(ranks, per_server):
    """The rule once more, in sets: whole clusters that are the same in every server, or two ranks of a cluster."""
    clusters = {(rank // per_server, rank % per_server // 4) for rank in ranks}
    servers = {server for server, _ in clusters}
    if len(ranks) <= 2 and len(servers) == 1:
        return len(clusters) == 1
    whole = {s * per_server + c * 4 + i for s, c in clusters for i in range(4)}
    product = {(s, c) for s in servers for c in {c for _, c in clusters}}
    return set(ranks) == whole and clusters == product


SHIPPED = sorted(Path("configs").glob("*.yaml")) + sorted(Path("configs/ascend").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_all_groups_of_shipped_configurations(path):
    """As on 910A servers, whatever they are for: every kind of group, and every way to cut the expert-parallel one."""
    config = load_config(str(path))
    tail = path.stem.rsplit("_", 1)[-1]
    topology = job_topology(
        config, int(tail) if tail.isdigit() else 2 * config.parallel.expert * config.parallel.tensor
    )
    cuts = [n for n in range(2, topology.expert + 1) if topology.expert % n == 0]
    kinds = [*GROUP_KINDS, *(f"ep{n}{part}" for n in cuts for part in ("", "_node", "_rail"))]
    per_server = 8 if topology.ranks_per_node == 4 else topology.ranks_per_node
    for kind in kinds:
        for ranks in topology.groups(kind):
            fault = all_to_all_fault("910a", ranks, topology.ranks_per_node)
            assert (fault is None) == allowed(ranks, per_server), (kind, ranks, fault)


@pytest.mark.parametrize("path", sorted(Path("configs/ascend").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_jobs_give_their_ranks_time(path):
    """HCCL's own 120 s to connect are fewer than drawing weights and compiling may take a slower rank."""
    hccl = load_config(str(path)).runtime.hccl
    assert hccl.connect_timeout >= 600 and hccl.exec_timeout >= hccl.connect_timeout
    assert hccl.exec_timeout % 68 == 0 and hccl.exec_timeout <= 17340  # what 910A takes


def test_groups_of_any_ranks():
    generator = np.random.default_rng(1)
    seen = set()
    for _ in range(3000):
        clusters = generator.choice(8, generator.integers(1, 5), replace=False)  # of four servers
        ranks = {int(c) * 4 + i for c in clusters for i in range(4)}
        if generator.random() < 0.5:
            ranks = set(generator.choice(32, generator.integers(1, 5), replace=False).tolist())
        found = all_to_all_fault("910a", sorted(ranks), 8) is None
        assert found == allowed(ranks, 8), ranks
        seen.add((len(ranks), found))
    assert {(2, True), (2, False), (4, True), (4, False), (8, True), (8, False), (16, True)} <= seen
