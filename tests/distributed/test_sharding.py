"""Optimizer state shared out over data-parallel ranks (ZeRO-1), against the same four ranks that each hold all of
it.
"""

import numpy as np
import pytest

from helpers.checkpoints import saved_tensors

RANKS = range(4)


@pytest.fixture
def output(sharding):
    return sharding


@pytest.mark.parametrize("step", [3, 5])
def test_the_same_bits(output, step):
    """Weights and moments of each three steps, and of two more that resume from the other's checkpoint."""
    whole, shared = (saved_tensors(output, name, step) for name in ("whole", "shared"))
    assert set(whole) == set(shared) and any(
        name.startswith("adam_v.") and value.any() for name, value in whole.items()
    )
    for name, value in whole.items():
        np.testing.assert_array_equal(shared[name], value, err_msg=name)
    for rank in RANKS:
        of_whole, of_shared = (
            np.load(output / f"history_{name}_{0 if step == 3 else 3}_{rank}.npy") for name in ("whole", "shared")
        )
        np.testing.assert_array_equal(of_shared[:, :3], of_whole[:, :3])
        np.testing.assert_allclose(
            of_shared[:, 3], of_whole[:, 3], rtol=1e-6
        )  # the norm: float32 squares summed in another order


def test_another_layout_goes_on(output):
    """Tensor parallel 2, experts on the host; sums in other orders (see test_checkpoints.py)."""
    found = saved_tensors(output, "other", 3)
    for name, value in saved_tensors(output, "shared", 3).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    for rank in RANKS:
        other, whole = (np.load(output / f"history_{name}_3_{rank}.npy") for name in ("other", "whole"))
        np.testing.assert_allclose(other, whole, rtol=1e-4)


def test_each_rank_holds_its_share(output):
    """Numbers: two moments; of sharded parameters these and the weights that are being updated, rounded up to equal
    stretches.
    """
    whole = saved_tensors(output, "whole", 3)
    dense = sum(value.size for name, value in whole.items() if name.startswith("adam_m.") and "@" not in name)
    experts = (
        sum(value.size for name, value in whole.items() if name.startswith("adam_m.") and "@" in name) // 2
    )  # of one rank
    for rank in RANKS:
        held = {name: np.load(output / f"held_{name}_{rank}.npy") for name in ("whole", "shared", "other")}
        assert held["whole"].tolist() == [2 * (dense + experts), 0]
        assert (
            0 <= held["shared"][0] - 3 * (dense / 4 + experts / 2) < 3 * 8 and held["shared"][1] == 0
        )  # 8 buckets at most
        # Tensor parallel 2 halves what an expert has, but not its output bias: four experts of width 32.
        assert held["other"][1] == 2 * (experts + 4 * 32) / 2 and held["other"][0] < 3 * dense / 2
