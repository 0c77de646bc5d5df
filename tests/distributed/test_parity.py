"""The same numbers at any parallel degree: four ranks, expert parallel, against one process.

Eight rows, two expert groups, homes of a given layout of 2 nodes x 2 ranks, LocMoE's losses with statistics over nodes.
Both train 20 steps from the same seed. What four ranks do at other degrees is in test_checkpoints.py; every router with
its gradients on four ranks is in tests/numerics.
"""

import numpy as np
import pytest

from helpers.checkpoints import saved_tensors

# fp32 sums in another order differ by about 1e-7 in losses and 1e-6 in gradients; 20 steps of Adam let that grow to
# 1e-5. The requirement is 1e-4.
TOLERANCE = 1e-4
LOSSES = ("task", "aux", "locality", "gradient norm")


def history(layouts, name):
    """<float64>[steps, 5], see `layouts_worker.Run.train`; of all ranks the same."""
    of_ranks = [np.load(path) for path in sorted(layouts.glob(f"history_{name}_[0-9].npy"))]
    for other in of_ranks:
        np.testing.assert_array_equal(other, of_ranks[0])
    return of_ranks[0]


def test_four_ranks_have_one_process_losses(layouts):
    one, four = history(layouts, "alone"), history(layouts, "straight")
    for column, loss in enumerate(LOSSES):
        np.testing.assert_allclose(four[:20, column], one[:, column], rtol=TOLERANCE, err_msg=loss)


@pytest.mark.parametrize("step", [1, 20])
def test_four_ranks_have_one_process_state(layouts, step):
    """Weights, moments, selection biases. After the first step the first moment is the gradient, times a constant."""
    one, four = (saved_tensors(layouts, name, step) for name in ("alone", "straight"))
    assert set(one) == set(four) and len(one) > 3 * 15
    for name in one:
        assert relative_error(four[name], one[name]) < TOLERANCE, name


def test_the_comparison_is_of_something(layouts):
    """Nothing was dropped, losses that should be there are, the model learns, and no gradient is zero throughout."""
    one = history(layouts, "alone")
    assert (one[:, 4] == 8 * 32).all()  # rows x positions, every step
    assert one[-1, 0] < one[0, 0] - 0.5
    assert (one[:, 1:3] > 0).all()
    moments = {name: value for name, value in saved_tensors(layouts, "alone", 1).items() if name.startswith("adam_m.")}
    assert [name for name, value in moments.items() if not np.any(value)] == []


def test_all_ranks_measure_the_slots_of_one_process(layouts):
    """Of the same batch with the same weights. Ranks whose slots change while they train: test_as_trained.py and
    test_measured_share.py.
    """
    one, *two = (float(np.load(layouts / f"slots_{name}.npy")) for name in ("1_0", "2_0", "2_1"))
    assert two == [one, one] and 1 < one < 32


@pytest.mark.parametrize("step", [1, 3])
def test_gradients_that_set_out_early_are_the_same(layouts, step):
    """Sums during the backward pass of the last of three micro-batches against sums after it: the same bits, of copies
    in half precision, and in messages of half precision. (With one micro-batch the other runs send them out early, and
    one process sends nothing; gradients of float32 parameters: tests/unit/pangu_sigma/train/test_gradient_overlap.py.)
    """
    early, late = (saved_tensors(layouts, name, step) for name in ("early", "late"))
    assert set(early) == set(late) and late["loss_scale.skipped"] == 0
    for name, value in late.items():
        np.testing.assert_array_equal(early[name], value, err_msg=name)


def relative_error(found, expected):
    """Largest difference beside the largest element: rounding is relative to the terms of a sum, not to what is left of
    it.
    """
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12)
