"""Optimizer state shared out over data-parallel ranks (ZeRO-1), a tensor at a time, against the same four ranks that
each hold all of it, update biases and norms in vectors (`optimizer.flat`) and recompute their layers: none of the three
changes a bit. That each resumes what another saved, and that both agree with a run that does nothing of it, is in
test_checkpoints.py.
"""

import numpy as np
import pytest

from helpers.checkpoints import saved_tensors

RANKS = range(4)


@pytest.mark.parametrize("step", [20, 30])
def test_the_same_bits(layouts, step):
    """Weights and moments as resumed from, and of ten steps more, with dropout."""
    whole, shared = (saved_tensors(layouts, name, step) for name in ("flat", "shared"))
    assert set(whole) == set(shared) and any(
        name.startswith("adam_v.") and value.any() for name, value in whole.items()
    )
    for name, value in whole.items():
        np.testing.assert_array_equal(shared[name], value, err_msg=name)
    for rank in RANKS:
        of_whole, of_shared = (np.load(layouts / f"history_{name}_{rank}.npy") for name in ("flat", "shared"))
        np.testing.assert_array_equal(of_shared[:, :3], of_whole[:, :3])
        np.testing.assert_allclose(
            of_shared[:, 3], of_whole[:, 3], rtol=1e-6
        )  # the norm: float32 squares summed in another order


def test_each_rank_holds_its_share(layouts):
    """Numbers: two moments; of sharded parameters these and the weights that are being updated, rounded up to equal
    stretches.
    """
    whole = saved_tensors(layouts, "straight", 30)
    moments = {name: value.size for name, value in whole.items() if name.startswith("adam_m.")}
    experts = sum(size for name, size in moments.items() if "@" in name)  # of all ranks
    dense = sum(moments.values()) - experts
    for rank in RANKS:
        held = {name: np.load(layouts / f"held_{name}_{rank}.npy") for name in ("straight", "shared", "2x2")}
        assert held["straight"].tolist() == [2 * (dense + experts // 4), 0]
        assert (
            0 <= held["shared"][0] - 3 * (dense / 4 + experts / 4) < 3 * 8 and held["shared"][1] == 0
        )  # half of the experts on two ranks each; 8 buckets at most
        # Tensor parallel 2 halves what an expert has, but not its output bias: four experts of width 32.
        assert held["2x2"][1] == 2 * (experts / 2 + 4 * 32) / 2 and held["2x2"][0] < 3 * dense / 2
