"""Kernels of the update, counted by hand: which tensors are updated one by one, and which in vectors."""

import pytest

from pangu_sigma.planner.launches import (
    CHOICE,
    EMPTIED,
    IN_STRETCH,
    IN_VECTOR,
    SEVERAL,
    UPDATE,
    VECTOR,
    micro_batch_launches,
    update_launches,
)

# Of a layer's tensors 6 are matrices, 4 of norms and 5 biases, since keys have none. Outside: three tables, one norm.
MATRICES, SMALL = 3 * 6 + 3, 3 * 9 + 2
DENSE = {"dense_layers": 2, "sparse_layers": 0, "sparse_query_layer": False}
ASCEND = {"device": "ascend"}
ONE_BY_ONE = UPDATE * (MATRICES + SMALL)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, ONE_BY_ONE),  # on CPU
        ({"runtime": ASCEND}, UPDATE * MATRICES + IN_VECTOR * SMALL + VECTOR),
        ({"optimizer": {"flat": True}}, UPDATE * MATRICES + IN_VECTOR * SMALL + VECTOR),
        ({"runtime": ASCEND, "optimizer": {"flat": False}}, ONE_BY_ONE),
        # Biases of queries, values and inner features are split, others and norms are not.
        ({"runtime": ASCEND, "parallel": {"tensor": 2}}, UPDATE * MATRICES + IN_VECTOR * SMALL + 2 * VECTOR),
        ({"train": {"micro_batch_size": 2}}, ONE_BY_ONE + EMPTIED * (MATRICES + SMALL)),
        # Linear maps, whose gradients are summed early; tables; biases and norms.
        (
            {"runtime": ASCEND, "optimizer": {"zero": "data_parallel"}},
            IN_STRETCH * (MATRICES + SMALL) + 3 * VECTOR,
        ),
    ],
)
def test_a_dense_network(make_job, sections, expected):
    job = make_job(1, 2, model=DENSE, moe={"router": {"type": "hash"}}, **sections)
    assert update_launches(job) == expected


@pytest.mark.parametrize(
    ("experts", "alone", "small", "vectors"),
    [
        ("device", 21, 29, 2),  # two matrices and two biases of experts are in these numbers
        ("host_dense", 23, 27, 1),
    ],
)
def test_experts_have_a_vector_unless_the_host_updates_them(make_job, experts, alone, small, vectors):
    job = make_job(
        1,
        1,
        model={"dense_layers": 1, "sparse_layers": 1, "sparse_query_layer": False},
        moe={"router": {"type": "hash"}},
        runtime=ASCEND,
        optimizer={"expert_state": experts},
    )
    assert update_launches(job) == UPDATE * alone + IN_VECTOR * small + VECTOR * vectors


@pytest.mark.parametrize(
    ("top_k", "routers", "expected"),
    [
        (1, [], 0),
        (4, [], 2 * SEVERAL + 2 * 3 * CHOICE),
        (4, [{"layers": [1], "type": "hash"}], 2 * SEVERAL + 3 * CHOICE),  # whose choices a table has
    ],
)
def test_further_choices_of_two_sparse_layers(make_job, top_k, routers, expected):
    model = {"dense_layers": 1, "sparse_layers": 2, "sparse_query_layer": False}
    found = [
        micro_batch_launches(
            make_job(1, 1, model=model, moe={"router": {"type": "topk", "top_k": count}, "routers": routers})
        )
        for count in (1, top_k)
    ]
    assert found[1] - found[0] == expected
