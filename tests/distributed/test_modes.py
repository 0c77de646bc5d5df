"""PyNative mode trains as graph mode does: every dispatcher, losses, gradients and weights on each rank."""

import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

from modes_worker import CASES, STEPS, ranks_of  # noqa: E402

# float32: other fusions add in another order, a few roundings (6e-8) of the largest term, which steps of Adam with an
# epsilon of 1e-4 let grow (seen: 4e-7). float16 rounds at 5e-4: what is rounded to another neighbour differs by that
# (seen: 1.4e-3).
TOLERANCE = {"float32": 5e-6, "float16": 4e-3}
CALLED = {
    "hierarchical, overlapped, half": {"start", "wait"},
    "ragged": {"all_gather", "all_to_all_v"},
    "flat, group-wise, shared state": {"all_to_all", "all_gather", "reduce_scatter"},
}


@pytest.fixture(scope="module")
def ranks(run_job, tmp_path_factory):
    """By case: what each rank left."""
    found = {}
    for world_size in (2, 4):
        folder = tmp_path_factory.mktemp("modes")
        run_job(world_size, 900, folder, "modes_worker.py", folder)
        left = [dict(np.load(folder / f"{world_size}_{rank}.npz")) for rank in range(world_size)]
        found.update({name: left for name in CASES if ranks_of(name) == world_size})
    assert found.keys() == CASES.keys()
    return found


def of(found, name, mode, what):
    """Arrays of a case and mode by name, of those that begin with `what`."""
    begin = f"{name}/{mode}/"
    return {key[len(begin) :]: array for key, array in found.items() if key.startswith(begin + what)}


@pytest.mark.parametrize("what", ["history", "first/", "last/"])
@pytest.mark.parametrize("name", CASES)
def test_pynative_mode_equals_graph_mode(ranks, name, what):
    for rank, found in enumerate(ranks[name]):
        compiled, eager = (of(found, name, mode, what) for mode in ("graph", "pynative"))
        tolerance = TOLERANCE["float16" if "half" in name else "float32"]
        assert compiled.keys() == eager.keys() and compiled
        for key, array in compiled.items():
            error = relative_error(eager[key], array, 0 if what == "history" else None)
            assert error < tolerance, f"rank {rank}, {key}: {error}"


@pytest.mark.parametrize("name", CASES)
def test_the_functions_of_hccl_carry_what_the_mesh_does(ranks, name):
    """To the bit: their stand-ins add in the mesh's order."""
    for found in ranks[name]:
        assert {"all_reduce", *CALLED[name]} <= set(found[f"called/{name}"])
        mesh, functions = (of(found, name, mode, "") for mode in ("pynative", "functions"))
        assert mesh.keys() == functions.keys() and mesh
        for key, array in mesh.items():
            np.testing.assert_array_equal(functions[key], array, err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_the_comparison_is_of_something(ranks, name):
    """The model learns, all ranks agree on losses, and no gradient is zero throughout."""
    history = ranks[name][0][f"{name}/graph/history"]
    assert len(history) == STEPS and history[-1, 0] < history[0, 0]
    for found in ranks[name]:
        np.testing.assert_array_equal(found[f"{name}/pynative/history"], ranks[name][0][f"{name}/pynative/history"])
    moments = of(ranks[name][0], name, "graph", "first/")
    assert [key for key, value in moments.items() if not np.any(value)] == []


def relative_error(found, expected, axis):
    """Largest difference beside the largest number of a tensor, or of each column: rounding is relative to the terms of
    a sum.
    """
    return np.max(np.abs(found - expected).max(axis) / np.maximum(np.abs(expected).max(axis), 1e-12))
