"""Suggested changes, carried out: they fit, and nothing smaller does."""

from dataclasses import replace

import pytest

from pangu_sigma.config.load import load_config
from pangu_sigma.config.schema_run import FusedConfig
from pangu_sigma.planner.cluster import Cluster, cluster_of
from pangu_sigma.planner.fits import advice, nearest_change, with_value
from pangu_sigma.planner.hardware import HardwareFigure, load_hardware
from pangu_sigma.planner.plan import make_plan


def with_memory(gigabytes, nodes=1, devices=1):
    """910A devices of other sizes, with nothing taken beforehand."""
    device = load_hardware("910a")
    memory = replace(
        device.memory,
        capacity_gb=HardwareFigure(gigabytes, source="by hand"),
        reserved_gb=HardwareFigure(0.0, source="by hand"),
        per_group_mb=HardwareFigure(0.0, source="by hand"),
    )
    return Cluster(nodes, devices, replace(device, memory=memory))


@pytest.fixture
def large(make_config):
    """8 rows at once: activations are most of it."""
    return make_config(
        model={"hidden_size": 256, "num_heads": 4, "ffn_hidden_size": 1024, "sequence_length": 256},
        runtime={"precision": "fp16", "device": "ascend"},
    )


def memory_of(config, cluster):
    return make_plan(config, cluster).memory.total / 1e9


SINGLE = {
    "train.micro_batch_size": (1, 2, 4),
    "train.recompute": ("attention", "sparse", 1, 2, 3, "all"),
    "moe.capacity.factor": (1.0,),
    "optimizer.expert_state": ("host_dense",),
}


@pytest.mark.parametrize("share", [0.8, 0.88, 0.95])
def test_the_quickest_of_the_changes_that_are_enough(large, share):
    """Of one setting, on one device, which has nothing to share out; those last whose price the plan does not know."""
    cluster = with_memory(memory_of(large, with_memory(1.0)) * share)
    plans = {
        f"--set {path}={value}": make_plan(with_value(large, path, value), cluster)
        for path, values in SINGLE.items()
        for value in values
    }
    seconds = {setting: plan.time.total for setting, plan in plans.items() if plan.fits}
    change = nearest_change(large, cluster)
    known = {setting: time for setting, time in seconds.items() if "capacity" not in setting and "host" not in setting}
    assert len(seconds) > 1 and known and change.settings == (min(known, key=known.get),)
    assert change.fits and change.memory == plans[change.settings[0]].memory.total


def carried_out(config, settings):
    for setting in settings:
        path, _, value = setting.removeprefix("--set ").partition("=")
        config = with_value(config, path, int(value) if value.isdigit() else value)
    return config


def test_two_settings_where_one_is_not_enough(large):
    """Two ranks at tensor parallel 2 and single rows are needed together, where all is recomputed already."""
    large, cluster = with_value(large, "train.recompute", "all"), with_memory(1.0, nodes=1, devices=2)
    both = memory_of(with_value(with_value(large, "train.micro_batch_size", 1), "parallel.tensor", 2), cluster)
    change = nearest_change(large, with_memory(both * 1.001, nodes=1, devices=2))
    assert len(change.settings) == 2
    assert change.memory <= both * 1.001e9


def test_as_many_settings_as_it_takes_before_other_hardware(large):
    """Single rows, everything recomputed, and tensor parallel 2: none of them can be left out."""
    needed = {"train.micro_batch_size": 1, "train.recompute": "all", "parallel.tensor": 2}
    smallest = large
    for path, value in needed.items():
        smallest = with_value(smallest, path, value)
    cluster = with_memory(memory_of(smallest, with_memory(1.0, devices=2)) * 1.001, devices=2)
    settings = nearest_change(large, cluster).settings
    assert len(settings) > 2 and all(setting.startswith("--set ") for setting in settings)
    assert make_plan(carried_out(large, settings), cluster).fits
    for setting in settings:
        assert not make_plan(carried_out(large, [one for one in settings if one != setting]), cluster).fits


def test_larger_hardware_where_no_keys_are_enough():
    """And what keys alone come to."""
    shipped = load_config("configs/ascend/pangu_sigma_1085b_512.yaml")
    # The 910A would not be planned at all with tokens sent by all-to-all, or with fused kernels.
    shipped = with_value(shipped, "parallel.all_to_all", "gathered")
    shipped = with_value(with_value(shipped, "runtime.fused", FusedConfig()), "train.micro_batch_size", 2)
    for chip, expected in (("auto", ("--hardware 910b",)), ("910a", ("--hardware 910b", "--set runtime.chip=910b"))):
        config = with_value(shipped, "runtime.chip", chip)
        cluster = cluster_of(config, 64, None, "910a")
        assert not make_plan(config, cluster).fits
        assert nearest_change(config, cluster).settings == expected
        found, _, least = advice(config, cluster).partition("; least on this hardware: ")
        assert found.startswith(f"{' '.join(expected)} (") and least.startswith("--set ")
    assert make_plan(shipped, cluster_of(shipped, 64, None, None)).fits


def test_optimizer_state_elsewhere_where_it_is_most_of_a_rank(make_config):
    """Two replicas of a model with a large vocabulary and few rows: Adam's moments of what they share, half of which
    goes. Three heads and three experts cannot be split.
    """
    config = make_config(
        model={"hidden_size": 240, "num_heads": 3, "ffn_hidden_size": 1024, "sequence_length": 16, "vocab_size": 40000},
        moe={"num_experts": 3, "num_groups": 1},
        train={"global_batch_size": 2},
        runtime={"precision": "fp16", "device": "ascend"},
    )
    cluster = with_memory(9.0, devices=2)
    shared = memory_of(with_value(config, "optimizer.zero", "data_parallel"), cluster)
    assert shared < memory_of(config, cluster) * 0.95
    assert nearest_change(config, with_memory(shared * 1.001, devices=2)).settings == (
        "--set optimizer.zero=data_parallel",
    )


def test_nothing_fits_into_nothing(large):
    config = with_value(large, "runtime.precision", "bf16")  # of the shipped hardware only the 910B has it
    cluster = replace(
        with_memory(1e-6), hardware=replace(load_hardware("910b"), memory=with_memory(1e-6).hardware.memory)
    )
    assert nearest_change(with_value(config, "model.hidden_size", 1 << 19), cluster) is None
    assert advice(with_value(config, "model.hidden_size", 1 << 19), cluster).startswith("nothing found; ")
