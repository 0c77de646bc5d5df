"""MFU by hand, peak memory by a stand-in for MindSpore's pool, and what is left out where nothing is known."""

import pytest

import mindspore as ms

from pangu_sigma.config.load import config_from_dict
from pangu_sigma.train.utilisation import Utilisation, peak_flops

WORDS, RANKS = 320, 16


def make(chip, precision="fp16"):
    return Utilisation(
        config_from_dict(
            {
                "model": {
                    "hidden_size": 32,
                    "num_heads": 2,
                    "dense_layers": 1,
                    "sparse_layers": 1,
                    "sequence_length": 64,
                },
                "moe": {"num_experts": 4, "router": {"type": "hash"}},
                "train": {"global_batch_size": 8},
                "runtime": {"precision": precision},
            }
        ),
        chip,
        RANKS,
        WORDS,
    )


@pytest.fixture
def pool(monkeypatch):
    """MindSpore's memory pool, which has a peak of what its owner says."""
    calls = []
    monkeypatch.setattr(ms.runtime, "reset_peak_memory_stats", lambda: calls.append("reset"))
    monkeypatch.setattr(ms.runtime, "max_memory_allocated", lambda: calls.append("asked") or 12345)
    return calls


@pytest.mark.parametrize(("chip", "tera"), [("910b", 280), ("910a", 256)])
def test_mfu_by_hand(pool, chip, tera):
    """Three attentions of 4 d^2 + 2 S d a token, three feed-forward networks of 8 d^2, a head of d V: two FLOPs each,
    three times with the backward pass; 512 tokens.
    """
    d = 32
    flops = 6 * 512 * (3 * (4 * d * d + 2 * 64 * d) + 3 * 8 * d * d + d * WORDS)
    found = make(chip)
    found.begin()
    assert found.mfu(0.25)["throughput/mfu"] == pytest.approx(flops / (0.25 * tera * 1e12 * RANKS), rel=1e-12)
    assert found.memory()["memory/device_peak(B)"] == 12345.0 and pool == ["reset", "asked"]


def test_the_peak_is_of_all_steps_on_a_device(monkeypatch, pool):
    found, taken = make("910b"), []
    for of_step in (300, 500, 200):
        monkeypatch.setattr(ms.runtime, "max_memory_allocated", lambda size=of_step: size)
        found.begin()
        memory = found.memory()
        taken.append((memory["memory/device_peak(B)"], memory["memory/peak(B)"]))
    assert taken == [(300.0, 300.0), (500.0, 500.0), (200.0, 500.0)]


@pytest.mark.parametrize(("chip", "precision"), [("910c", "fp16"), ("910b", "fp32")])
def test_without_a_known_peak_there_is_no_mfu(pool, chip, precision):
    found = make(chip, precision)
    assert set(found.memory()) == {"memory/peak(B)", "memory/device_peak(B)", "memory/process_peak(B)"}
    assert found.mfu(1.0) == {}
    assert peak_flops(chip, precision) is None


def test_a_cpu_tells_of_its_process_alone(pool):
    found = make(None, "fp32")
    found.begin()
    memory = found.memory()
    assert set(memory) == {"memory/peak(B)", "memory/process_peak(B)"} and found.mfu(1.0) == {} and pool == []
    assert memory["memory/peak(B)"] == memory["memory/process_peak(B)"]
    resident = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
    assert found.memory()["memory/process_peak(B)"] == pytest.approx(int(resident.split()[1]) * 1024, rel=0.05)
