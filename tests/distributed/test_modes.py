"""PyNative mode trains as graph mode does: four ranks, every dispatcher, losses, gradients and weights on each rank."""

import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

from modes_worker import CASES, STEPS  # noqa: E402

RANKS = 4
# float32: other fusions add in another order, a few roundings (6e-8) of the largest term, which four steps of Adam with
# an epsilon of 1e-4 let grow. float16 rounds at 5e-4: what is rounded to another neighbour differs by that.
TOLERANCE = {"float32": 2e-5, "float16": 4e-3}


@pytest.fixture(scope="module")
def ranks(run_job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("modes")
    run_job(RANKS, 900, folder, "modes_worker.py", folder)
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(RANKS)]


def of(found, name, mode, what):
    """Arrays of a case and mode by name, of those that begin with `what`."""
    begin = f"{name}/{mode}/"
    return {key[len(begin) :]: array for key, array in found.items() if key.startswith(begin + what)}


@pytest.mark.parametrize("what", ["history", "first/", "last/"])
@pytest.mark.parametrize("name", CASES)
def test_pynative_mode_equals_graph_mode(ranks, name, what):
    for rank, found in enumerate(ranks):
        compare(of(found, name, "graph", what), of(found, name, "pynative", what), name, rank)


@pytest.mark.parametrize("name", CASES)
def test_the_functions_of_hccl_carry_what_the_mesh_does(ranks, name):
    """Their stand-ins use the same sums in the same order, but for those of gradients in steps over nodes."""
    for rank, found in enumerate(ranks):
        compare(of(found, name, "pynative", ""), of(found, name, "functions", ""), name, rank)


@pytest.mark.parametrize("name", CASES)
def test_the_comparison_is_of_something(ranks, name):
    """The model learns, all ranks agree on losses, and no gradient is zero throughout."""
    history = ranks[0][f"{name}/graph/history"]
    assert len(history) == STEPS and history[-1, 0] < history[0, 0]
    for found in ranks:
        np.testing.assert_array_equal(found[f"{name}/pynative/history"], ranks[0][f"{name}/pynative/history"])
    moments = of(ranks[0], name, "graph", "first/")
    assert [key for key, value in moments.items() if not np.any(value)] == []


def compare(expected, found, name, rank):
    """Largest difference beside the largest element of each tensor, or column of losses: rounding is relative to the
    terms of a sum.
    """
    tolerance = TOLERANCE["float16" if "half" in name else "float32"]
    assert expected.keys() == found.keys() and expected
    for key, array in expected.items():
        columns = 0 if key == "history" else None
        error = np.abs(found[key] - array).max(columns) / np.maximum(np.abs(array).max(columns), 1e-12)
        assert np.max(error) < tolerance, f"rank {rank}, {key}: {error}"
