import numpy as np
import pytest

from locmoe_ops.dispatch.slots import PermuteRows

pytestmark = pytest.mark.compiles

pytestmark = pytest.mark.usefixtures("graph_mode")


def maps(rows, places, connected, seed):
    """A random partial matching between rows and places: source and target with their masks."""
    rng = np.random.default_rng(seed)
    chosen_rows, chosen_places = rng.permutation(rows)[:connected], rng.permutation(places)[:connected]
    # Where nothing is connected, any valid index may stand.
    source, target = rng.integers(0, rows, places).astype(np.int32), rng.integers(0, places, rows).astype(np.int32)
    source_mask, target_mask = np.zeros((places, 1), np.float32), np.zeros((rows, 1), np.float32)
    source[chosen_places], target[chosen_rows] = chosen_rows, chosen_places
    source_mask[chosen_places], target_mask[chosen_rows] = 1, 1
    return source, source_mask, target, target_mask


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("rows, places, connected", [(20, 12, 7), (12, 20, 12), (9, 9, 9), (5, 8, 0)])
def test_rows_and_gradients_match_a_scatter_loop(pullback, rows, places, connected, kind):
    source, source_mask, target, target_mask = maps(rows, places, connected, seed=rows)
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((rows, 6)).astype(kind), rng.standard_normal((places, 6)).astype(kind)
    (found,), (gradient, *of_masks), _ = pullback(PermuteRows(), [x, source, source_mask, target, target_mask], [dy])
    expected, expected_gradient = np.zeros((places, 6), kind), np.zeros((rows, 6), kind)
    for place in range(places):
        if source_mask[place]:
            expected[place] = x[source[place]]
            expected_gradient[source[place]] += dy[place]  # what autodiff of a gather would scatter
    assert found.dtype == gradient.dtype == kind
    assert np.array_equal(found, expected) and np.array_equal(gradient, expected_gradient)  # copies are exact
    assert not any(mask.any() for mask in of_masks)
