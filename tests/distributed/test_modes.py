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
    tolerance = TOLERANCE["float16" if "half" in name else "float32"]
    for rank, found in enumerate(ranks):
        compiled, eager = (of(found, name, mode, what) for mode in ("graph", "pynative"))
        assert compiled.keys() == eager.keys() and compiled
        for key, array in compiled.items():
            worst = np.abs(eager[key] - array).max(0) / np.maximum(np.abs(array).max(0), 1e-12)
            assert worst.max() < tolerance if key == "history" else relative_error(eager[key], array) < tolerance, (
                f"rank {rank}, {key}: {worst.max()}"
            )


@pytest.mark.parametrize("name", CASES)
def test_the_functions_of_hccl_carry_what_the_mesh_does(ranks, name):
    """Their stand-ins use the same sums in the same order, but for those of gradients in steps over nodes."""
    tolerance = TOLERANCE["float16" if "half" in name else "float32"]
    for found in ranks:
        mesh, functions = (of(found, name, mode, "") for mode in ("pynative", "functions"))
        assert mesh.keys() == functions.keys()
        for key, array in mesh.items():
            assert relative_error(functions[key], array) < tolerance, key


@pytest.mark.parametrize("name", CASES)
def test_the_comparison_is_of_something(ranks, name):
    """The model learns, all ranks agree on losses, and no gradient is zero throughout."""
    history = ranks[0][f"{name}/graph/history"]
    assert len(history) == STEPS and history[-1, 0] < history[0, 0]
    for found in ranks:
        np.testing.assert_array_equal(found[f"{name}/pynative/history"], ranks[0][f"{name}/pynative/history"])
    moments = of(ranks[0], name, "graph", "first/")
    assert [key for key, value in moments.items() if not np.any(value)] == []


def relative_error(found, expected):
    """Largest difference beside the largest element, since rounding is relative to the terms of a sum."""
    return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12)
