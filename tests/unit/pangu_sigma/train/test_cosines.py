"""`cosines.json` of made-up tokens against loops over pairs."""

import json

import numpy as np
import pytest

from locmoe_ops.capacity.bound import minimum_capacity
from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology
from pangu_sigma.train.cosines import measure_cosines
from pangu_sigma.train.evaluation import RoutedTokens

ROWS, LENGTH, HIDDEN = 3, 5, 16
EDGES = [-1.0 + i / 100 for i in range(201)]


def layer(seed, gates=True):
    generator = np.random.default_rng(seed)
    group = np.repeat([0, 1, 0], LENGTH)[:, None]
    return RoutedTokens(
        generator.standard_normal((ROWS * LENGTH, HIDDEN)).astype(np.float32),
        (2 * group + generator.integers(0, 2, (ROWS * LENGTH, 1))).astype(np.int32),
        generator.standard_normal((2, 2, HIDDEN)).astype(np.float32) if gates else None,
        2,
    )


def cosine(a, b):
    return float(
        np.dot(a.astype(float), b.astype(float)) / np.sqrt(np.dot(a.astype(float), a) * np.dot(b.astype(float), b))
    )


def counted(values):
    """Counts of bins that hold their left edge; no value of these lies on an edge."""
    return [sum(left <= value < right for value in values) for left, right in zip(EDGES, EDGES[1:])]


@pytest.fixture
def measure(networks):
    collectives = create_collectives("local", Topology(1, 1), 0)
    config = networks.small_config(
        None, {"capacity": {"mode": "critical", "delta_statistic": "quantile", "quantile": 0.75}}
    )
    return lambda layers: json.loads(json.dumps(measure_cosines(config, layers, ROWS, collectives)))


def test_histograms_of_the_last_layer(measure):
    last = layer(1)
    found = measure([layer(0), last])
    pairs = [(i, j) for i in range(len(last.x)) for j in range(i)]
    same = {pair: last.expert[pair[0], 0] == last.expert[pair[1], 0] for pair in pairs}
    expected = {
        "token_token_within": [cosine(last.x[i], last.x[j]) for i, j in pairs if same[i, j]],
        "token_token_across": [cosine(last.x[i], last.x[j]) for i, j in pairs if not same[i, j]],
        "token_gate": [
            cosine(x, gate) for x, expert in zip(last.x, last.expert[:, 0]) for gate in last.gates[expert // 2]
        ],
    }
    assert found["layer"] == 1
    for name, values in expected.items():
        np.testing.assert_allclose(found[name]["edges"], EDGES, atol=1e-12)
        assert found[name]["counts"] == counted(values), name


def test_delta_and_bound_of_every_layer(measure):
    layers = [layer(0), layer(1)]
    found = measure(layers)
    for number, of_layer in enumerate(layers):
        own = np.array(
            [cosine(x, of_layer.gates[expert // 2, expert % 2]) for x, expert in zip(of_layer.x, of_layer.expert[:, 0])]
        )
        rows = own.reshape(ROWS, LENGTH)
        delta = {
            "maximum": rows.max(1).mean(),
            "minimum": max(rows.min(1).mean(), 0.0),
            "mean": max(rows.mean(), 0.0),
            "quantile": max(np.sort(rows, 1)[:, 3].mean(), 0.0),
        }  # the fourth of five
        assert set(found["delta"]) == set(delta)
        for statistic, value in delta.items():
            assert found["delta"][statistic][number] == pytest.approx(value, abs=1e-9)
            for form in ("exact", "erfc", "exp"):
                assert found["bound"][form][statistic][number] == pytest.approx(
                    minimum_capacity(value, HIDDEN, 2, form), rel=1e-6
                )


def test_without_gates_there_are_tokens_only(measure):
    assert set(measure([layer(0, gates=False)])) == {"layer", "token_token_within", "token_token_across"}


def test_a_bound_beyond_all_numbers_is_null(networks, measure):
    one = layer(0)
    along = one.gates[one.expert[:, 0] // 2, one.expert[:, 0] % 2]
    found = measure([RoutedTokens(along, one.expert, one.gates, 2)])  # every token has its gate's direction: delta 1
    assert found["delta"]["mean"] == [pytest.approx(1.0)]
    assert found["bound"]["exp"]["mean"][0] == pytest.approx(np.exp(16.0) / 2, rel=1e-6)


def test_report_reads_it(measure):
    """The report draws a density from each histogram: its area is 1."""
    from pangu_sigma.report.figures import histogram

    found = measure([layer(0)])
    for name in ("token_token_within", "token_token_across", "token_gate"):
        curve = histogram(name, 0, found[name])
        assert np.diff(found[name]["edges"]) @ curve.y == pytest.approx(1.0)


def test_a_layer_without_gates_has_null_among_those_that_have(measure):
    found, alone = measure([layer(0), layer(1, gates=False), layer(2)]), measure([layer(0), layer(2)])
    for statistic, values in alone["delta"].items():
        assert found["delta"][statistic] == [values[0], None, values[1]]
        first, last = alone["bound"]["exact"][statistic]
        assert found["bound"]["exact"][statistic] == [first, None, last]
    below = measure([layer(0), layer(1, gates=False)])
    assert "token_gate" not in below and below["delta"]["mean"] == [alone["delta"]["mean"][0], None]
