"""A run of 4 ranks, saved half-way: it resumes to the bit at its own layout, and to rounding at others, none of which
lose a bit.

Expert parallel 4; then 2 x tensor parallel 2, with optimizer state shared out and experts' on the host, and tokens in
two tiers, shared out over tensor ranks; then expert parallel 2, with state whole and biases and norms in vectors, and
shared out (see test_sharding.py); then expert parallel 4 again, with other experts on each rank. Each reads what one
before it wrote.
"""

import numpy as np
import pytest

from helpers.checkpoints import saved_tensors
from pangu_sigma.checkpoint.reader import CheckpointReader

RANKS = range(4)
# What the issue asks for. fp32 sums in another order differ by 1e-7; 10 steps of Adam let that grow to 1e-5.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def output(layouts):
    return layouts


def history(output, name, rank=0):
    """<float64>[10, 4]: task, balancing and locality loss, gradient norm of the steps after the half that is saved."""
    return np.load(output / f"history_{name}_{rank}.npy")[-10:, :4]


def test_the_same_run_goes_on_to_the_bit(output):
    for rank in RANKS:
        np.testing.assert_array_equal(history(output, "resumed", rank), history(output, "straight", rank))
    straight, resumed = (saved_tensors(output, name, 30) for name in ("straight", "resumed"))
    assert set(straight) == set(resumed)
    for name, value in straight.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


@pytest.mark.parametrize("name", ["2x2", "flat", "shared"])
def test_other_layouts_go_on_with_the_same_losses(output, name):
    found, expected = history(output, name), history(output, "straight")
    assert (expected > 0).all()
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)


def test_the_second_half_trains_every_tensor(output):
    """Or the runs that resume would have nothing to differ in."""
    before, after = saved_tensors(output, "straight", 20), saved_tensors(output, "straight", 30)
    kept = {name for name, value in before.items() if np.array_equal(value, after[name])}
    assert kept == {"loss_scale.scale", "loss_scale.good", "loss_scale.skipped"}  # fp32 has no use for them


@pytest.mark.parametrize("name", ["2x2", "flat", "shared", "back"])
def test_no_layout_loses_a_bit(output, name):
    """Weights, moments, counters and biases of the selection, each expert under its own id, as the first layout wrote
    them.
    """
    first, now = saved_tensors(output, "straight", 20), saved_tensors(output, name, 20)
    assert set(first) == set(now)
    assert {f"adam_v.blocks.0.feed_forward.experts.w_out@{expert}" for expert in range(8)} <= set(now)
    assert any(
        name.endswith("balance_bias") and value.any() for name, value in now.items() if isinstance(value, np.ndarray)
    )
    for tensor, value in first.items():
        np.testing.assert_array_equal(now[tensor], value, err_msg=tensor)


def test_each_rank_wrote_its_own(output):
    """Files and parts as the layouts say: of what two ranks share out, two parts."""
    files = {
        name: sorted(path.stem for path in (output / name / "checkpoints" / "step_20").glob("*.safetensors"))
        for name in ("straight", "2x2", "flat")
    }
    assert files == {
        "straight": ["dense_0", *(f"experts_{i}_0" for i in range(4))],
        "flat": ["dense_0", "experts_0_0", "experts_1_0"],
        "2x2": ["dense_0", "dense_1", "experts_0_0", "experts_0_1", "experts_1_0", "experts_1_1"],
    }
    with CheckpointReader.open(output / "2x2" / "checkpoints" / "step_20") as reader:
        assert len(reader.entry("embedding.word").parts) == 2 and reader.entry("embedding.word").blocks == 2
        assert len(reader.entry("adam_m.blocks.0.feed_forward.experts.w_in@5").parts) == 2
        assert len(reader.entry("blocks.0.feed_forward.experts.b_out@5").parts) == 1


def test_all_ranks_leave_a_checkpoint_that_one_finds_damaged(output):
    """The damaged bytes are the last rank's alone."""
    assert [(output / f"agreed_{rank}").read_text() for rank in RANKS] == ["20"] * 4
