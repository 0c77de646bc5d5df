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
    """<float64>[steps, 6], see `layouts_worker.Run.train`; of all ranks the same."""
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


def test_ranks_change_their_slots_together(layouts):
    """Every rank took the same slots (else their histories would differ, and their all-to-all would not fit), and those
    that one process measures on the same batch with the same weights.
    """
    one, two = (history(layouts, name)[:, 5] for name in ("adaptive_alone", "adaptive"))  # slots a sequence
    assert one[0] == two[0]
    for slots in (one, two):
        assert slots[0] == slots[1] == slots[2] != slots[3]


def test_layers_that_are_recomputed_change_no_bit(layouts):
    """Four ranks, with dropout: losses and norms of three steps; after the first step weights and moments, of which the
    first is the gradient times a constant.
    """
    kept, recomputed = history(layouts, "straight"), history(layouts, "recomputed")
    np.testing.assert_array_equal(recomputed, kept[:3])
    kept, recomputed = (saved_tensors(layouts, name, 1) for name in ("straight", "recomputed"))
    assert set(kept) == set(recomputed)
    for name, value in kept.items():
        np.testing.assert_array_equal(recomputed[name], value, err_msg=name)


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("precision", ["", " half"])
def test_gradients_that_set_out_early_are_the_same(layouts, precision, step):
    """Sums during the backward pass of the last of three micro-batches against sums after it: the same bits, also where
    copies in half precision are differentiated. (With one micro-batch the other runs send them out early, and one
    process sends nothing.)
    """
    early, late = (saved_tensors(layouts, f"{name}{precision}", step) for name in ("early", "late"))
    assert set(early) == set(late)
    for name, value in late.items():
        np.testing.assert_array_equal(early[name], value, err_msg=name)


def relative_error(found, expected):
    """Largest difference beside the largest element: rounding is relative to the terms of a sum, not to what is left of
    it.
    """
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12)
