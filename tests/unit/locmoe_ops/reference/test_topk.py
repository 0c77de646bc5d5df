"""The twin of `topk`, `node_limited` and `moge`: its gradients against differences, its choices against plain sorts."""

from dataclasses import replace

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.reference.layer import moe_layer, moe_layer_gradients
from locmoe_ops.reference.spec import LayerParameters, LayerSpec, RankTokens
from locmoe_ops.reference.topk import ROUTERS, SCORE_FUNCTIONS, TopKRules, open_experts, scores_of
from locmoe_ops.topology import ExpertPlacement, Topology

EXPERTS, HIDDEN, INNER, TOKENS = 16, 6, 3, 10
STEP = 1e-6  # of differences: an error of order STEP**2, and rounding of 1e-16 / STEP


def a_layer(router, function, normalise, top_k=4):
    rng = np.random.default_rng(0)
    shapes = (
        (EXPERTS, HIDDEN, INNER),
        (EXPERTS, INNER),
        (EXPERTS, INNER, HIDDEN),
        (EXPERTS, HIDDEN),
        (EXPERTS, HIDDEN),
    )
    w1, b1, w2, b2, gate = (rng.standard_normal(shape) for shape in shapes)
    parameters = LayerParameters(w1, b1, w2, b2, gate, balance=0.1 * rng.standard_normal(EXPERTS))
    ranks = [
        RankTokens(
            rng.standard_normal((TOKENS, HIDDEN)),
            np.zeros(TOKENS, int),
            rng.integers(0, 2, TOKENS),
            np.full(TOKENS, rank),
        )
        for rank in range(2)
    ]
    rules = TopKRules(function, normalise, 1.7, max_nodes=1, sequence_loss=0.3, z_loss=0.2, sequence_length=5)
    spec = LayerSpec(
        Topology(4, 2, 4),
        ExpertPlacement(EXPERTS, 2, 4),
        3,
        router=router,
        domain_groups=(0, 1),
        top_k=top_k,
        statistics="expert_parallel",
        topk_rules=rules,
    )
    return spec, parameters, ranks, [rng.standard_normal((TOKENS, HIDDEN)) for _ in ranks]


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("function", SCORE_FUNCTIONS)
@pytest.mark.parametrize("normalise", [False, True])
def test_gradients_are_those_of_differences(router, function, normalise):
    spec, parameters, ranks, slopes = a_layer(router, function, normalise)

    def objective(x, gate):
        result = moe_layer(spec, replace(parameters, gate=gate), [replace(ranks[0], x=x), ranks[1]])
        return sum((output * slope).sum() for output, slope in zip(result.outputs, slopes)) + result.aux_loss

    found = moe_layer_gradients(spec, parameters, ranks, slopes, 1.0, 1.0)
    rng, x, gate = np.random.default_rng(1), ranks[0].x, parameters.gate
    for _ in range(4):
        of_x, of_gate = np.zeros_like(x), np.zeros_like(gate)
        of_x[rng.integers(TOKENS), rng.integers(HIDDEN)] = STEP
        of_gate[rng.integers(EXPERTS), rng.integers(HIDDEN)] = STEP
        slope = (objective(x + of_x, gate) - objective(x - of_x, gate)) / (2 * STEP)
        assert slope == pytest.approx(found.x[0][of_x > 0][0], abs=1e-6)
        slope = (objective(x, gate + of_gate) - objective(x, gate - of_gate)) / (2 * STEP)
        assert slope == pytest.approx(found.gate[of_gate > 0][0], abs=1e-6)


def test_where_tokens_go():
    """On one of two nodes of two devices each; one expert of each device."""
    for router, most in (("node_limited", (1, 2)), ("moge", (2, 4)), ("topk", (2, 4))):
        spec, parameters, ranks, _ = a_layer(router, "sigmoid", True)
        for row in moe_layer(spec, parameters, ranks).expert[0]:
            devices = {spec.placement.ep_index_of(int(expert)) for expert in row}
            nodes = {device // 2 for device in devices}
            assert len(set(row.tolist())) == 4 and len(nodes) <= most[0] and len(devices) <= most[1]
            assert router != "moge" or len(devices) == 4


def test_nodes_by_hand():
    score, node = np.array([0.9, 0.1, 0.6, 0.5]), [0, 0, 1, 1]
    assert open_experts(TopKRules(max_nodes=1), score, node, 1) == [0, 1]
    assert open_experts(TopKRules(max_nodes=1), score, node, 2) == [2, 3]
    assert open_experts(TopKRules(max_nodes=2), score, node, 2) == [0, 1, 2, 3]
    assert open_experts(TopKRules(max_nodes=1), np.array([0.5, 0.5, 0.5, 0.5]), node, 2) == [0, 1]


def test_an_unknown_score_function_is_named():
    with pytest.raises(InputError, match="score_function is 'cosine', expected one of softmax, sigmoid, sqrt_softplus"):
        scores_of(TopKRules("cosine"), np.zeros(2))
