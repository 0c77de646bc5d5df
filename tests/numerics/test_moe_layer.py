"""The compiled sparse layer against the NumPy reference: outputs, losses, counts and all gradients.

In one process, with `layout` saying that its tokens belong to four ranks, and as a job of four ranks.
"""

from dataclasses import replace

import numpy as np
import pytest
from compiled_layer import as_one_network
from layer_cases import AMPLE, CASES, DRAWS, batch_of, on_one_rank, parameters_of

from locmoe_ops.reference.layer import moe_layer, moe_layer_gradients

# Relative to an array's largest element. float32 rounds to 6e-8, and a gradient is a sum over some hundred terms, the
# largest of which cancel; measured errors stay below 3e-6.
TOLERANCE = 1e-5
# float16 rounds to 2**-11, and so a token, a weight, a product, a bias, an activation, a result, its scaling and the
# sum of two of them, and the gradients of each: twenty roundings at most on the way to any number. Gates and losses are
# float32 throughout.
HALF_TOLERANCE = 20 * 2.0**-11
COUNTS = ("assigned", "kept", "kept_local", "undecided", "tokens_by_nodes")
EXPERT_PARAMETERS = {"w_in": "w1", "b_in": "b1", "w_out": "w2", "b_out": "b2"}
EVERYTHING = [(name, draw) for name in CASES for draw in DRAWS]
NOTHING_DROPPED = [(name, draw) for name, draw in EVERYTHING if CASES[name].capacity == AMPLE]


def assert_equal(found, expected, tolerance=TOLERANCE):
    """All arrays of two mappings agree, each measured by its largest element; counts agree exactly."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        scale = 0.0 if name in COUNTS else tolerance * np.abs(array).max()
        np.testing.assert_allclose(found[name], array, rtol=0, atol=scale, err_msg=name)


def tolerance_of(case):
    return HALF_TOLERANCE if case.half else TOLERANCE


def from_reference(case, ranks, output_gradients):
    """The reference's results by the names that `joined` uses."""
    parameters = parameters_of(case)
    result = moe_layer(case.spec, parameters, ranks)
    gradients = moe_layer_gradients(case.spec, parameters, ranks, output_gradients, 1.0, 1.0)
    kept = sum(int(kept.sum()) for kept in result.kept)
    expected = {
        "y": np.concatenate(result.outputs),
        "gradient/x": np.concatenate(gradients.x),
        "aux_loss": result.aux_loss,
        "locality_loss": result.locality_loss,
        "assigned": result.stats.tokens_per_expert,
        "kept": kept,
        "kept_local": round(result.stats.local_fraction * kept),
    }
    if case.router == "locmoe":  # in assignments, as the others
        expected["undecided"] = (
            round(result.stats.undecided_fraction * sum(len(tokens.x) for tokens in ranks)) * case.top_k
        )
    if result.stats.tokens_by_nodes.size:
        expected["tokens_by_nodes"] = result.stats.tokens_by_nodes
    if gradients.gate is not None:
        expected["gradient/weight"] = gradients.gate
    if gradients.shared is not None:
        expected.update({f"gradient/{name}": array for name, array in as_one_network(gradients.shared).items()})
        expected["gradient/2.bias"] = gradients.shared.b2[0]
    for name, theirs in EXPERT_PARAMETERS.items():
        expected[f"gradient/{name}"] = getattr(gradients, theirs)
    return expected


def joined(case, results, expert_parallel):
    """What all ranks found together: tokens side by side, sums added up, experts in the order of their ids.

    An expert's gradients from its replicas add up like those of dense parameters do.
    """
    placement = case.placed(expert_parallel)
    whole = {name: np.concatenate([result[name] for result in results]) for name in ("y", "gradient/x")}
    for name in ("aux_loss", "locality_loss"):
        whole[name] = results[0][name]
        assert all(result[name] == whole[name] for result in results), f"{name} differs between ranks"
    shared = [name for name in results[0] if name.startswith(("gradient/0.", "gradient/2."))]
    for name in (*COUNTS, "gradient/weight", *shared):
        if name in results[0]:
            whole[name] = sum(result[name] for result in results)
    for name in EXPERT_PARAMETERS:
        shape = results[0][f"gradient/{name}"].shape[1:]
        whole[f"gradient/{name}"] = total = np.zeros((case.experts, *(size for size in shape if size > 1)))
        for rank, result in enumerate(results):
            for held, expert in enumerate(placement.local_experts(rank % expert_parallel)):
                total[expert] += result[f"gradient/{name}"][held].squeeze()
    return whole


def of_four_ranks(four_ranks, name, draw):
    prefix = f"{name}/{draw}/"
    results = [
        {key[len(prefix) :]: array for key, array in rank.items() if key.startswith(prefix)} for rank in four_ranks
    ]
    return joined(CASES[name], results, CASES[name].expert_parallel)


@pytest.mark.parametrize("name, draw", EVERYTHING)
def test_one_process_matches_the_reference(one_process, name, draw):
    case = replace(CASES[name], far_capacity=None, copies=None)  # one process is one node
    expected = from_reference(case, *on_one_rank(*batch_of(case, draw)))
    assert_equal(joined(case, [one_process(name, draw)], 1), expected, tolerance_of(case))


@pytest.mark.parametrize("name, draw", EVERYTHING)
def test_four_ranks_match_the_reference(four_ranks, name, draw):
    case = CASES[name]
    assert_equal(of_four_ranks(four_ranks, name, draw), from_reference(case, *batch_of(case, draw)), tolerance_of(case))


@pytest.mark.parametrize("name, draw", NOTHING_DROPPED)
def test_one_process_with_a_layout_equals_the_ranks_it_stands_for(one_process, four_ranks, name, draw):
    # Both compute in float32 and differ only in the order of their sums.
    assert_equal(joined(CASES[name], [one_process(name, draw)], 1), of_four_ranks(four_ranks, name, draw), 3e-6)


@pytest.mark.parametrize("name", CASES)
def test_cases_hold_what_they_are_for(name):
    case, parameters = CASES[name], parameters_of(CASES[name])
    scattered = moe_layer(case.spec, parameters, batch_of(case, "scattered")[0])
    crowded = moe_layer(case.spec, parameters, batch_of(case, "crowded")[0])
    dropping = replace(case, overflow="drop").spec
    for draw, result in (("scattered", scattered), ("crowded", crowded)):
        dropped = result.stats.drop_fraction
        if case.overflow == "repick":
            assert 0 < dropped < moe_layer(dropping, parameters, batch_of(case, draw)[0]).stats.drop_fraction - 0.05
            continue
        assert dropped > 0.1 if case.capacity < AMPLE else dropped == 0
    without_tokens = (crowded.stats.tokens_per_expert == 0).sum()
    assert without_tokens >= case.experts - case.experts // case.groups
    as_chosen = moe_layer(dropping, parameters, batch_of(case, "crowded")[0])
    # Of eight equal tokens some stay without an expert where these choose, or at home where few may leave: more than an
    # expert has slots are assigned alike all the same.
    wanted = case.capacity + 1 if case.expert_choice or case.library_cap else 8
    for expert, weight in zip(as_chosen.expert, as_chosen.weight):
        alike = [(expert[:, 0] == expert[t, 0]) & (weight[:, 0] == weight[t, 0]) for t in range(3, 11)]
        assert max(same.sum() for same in alike) >= wanted, "equal assignments"
