"""Graphs written by hand: what clears and reads the register, and what does so at the wrong place."""

import pytest

from pangu_sigma.audit.status import CLEAR, READ, GraphNode, status_faults


def node(operation, inputs, output):
    return GraphNode(operation, tuple(inputs.split()), (output,))


BEFORE, AFTER = node(CLEAR, "words", "cleared"), node(READ, "watched", "status")
INPUT = node("Depend", "x cleared", "ready")
FORWARD, BACKWARD = node("MatMul", "ready w", "y"), node("BatchMatMul", "y dy", "dw")
RESULT = node("Depend", "words dw", "watched")
STEP = [BEFORE, INPUT, FORWARD, BACKWARD, RESULT, AFTER]


@pytest.mark.parametrize(
    ("nodes", "wanted", "expected"),
    [
        (STEP, True, []),
        (STEP[::-1], True, []),  # the order of a list means nothing
        ([node("Add", "a b", "c")], True, []),  # an update of what was accumulated: nothing to watch
        ([FORWARD, BACKWARD], False, []),
        (STEP, False, [f"1 {CLEAR}, expected 0", f"1 {READ}, expected 0"]),
        ([FORWARD, BACKWARD], True, [f"0 {CLEAR}, expected 1", f"0 {READ}, expected 1"]),
        ([*STEP, node(CLEAR, "status", "again")], True, [f"2 {CLEAR}, expected 1"]),
        ([*STEP, node(READ, "y", "second")], True, [f"2 {READ}, expected 1"]),
        (
            [BEFORE, node("MatMul", "x w", "y"), BACKWARD, RESULT, AFTER],
            True,
            [f"2 of 2 products do not wait for {CLEAR}"],
        ),
        (
            [*STEP[:4], node("Depend", "words y", "watched"), AFTER],
            True,
            [f"{READ} does not wait for 1 of 2 products"],
        ),
        ([*STEP, node("MatMul", "ready v", "z")], True, [f"{READ} does not wait for 1 of 3 products"]),
        (
            [*STEP, node("FlashAttentionScore", "q k v", "o")],
            True,
            [f"1 of 3 products do not wait for {CLEAR}"] + [f"{READ} does not wait for 1 of 3 products"],
        ),
    ],
)
def test_the_register_is_cleared_before_and_read_after_all_products(nodes, wanted, expected):
    assert status_faults(nodes, wanted) == expected
