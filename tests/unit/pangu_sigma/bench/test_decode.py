"""`bench decode`: bytes against other counts; times are only checked to be there."""

import re

import numpy as np
import pytest

from locmoe_ops.topology import Topology
from pangu_sigma.bench import decode as bench
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.inference.load import inference_config, network_context
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.planner.job import PlannedJob
from pangu_sigma.planner.parameters import count_parameters

pytestmark = pytest.mark.compiles

WORDS, DOMAINS = 23, 3


def _config(**model):
    return config_from_dict(
        {
            "model": {
                "hidden_size": 8,
                "num_heads": 2,
                "sequence_length": 16,
                "dense_layers": 1,
                "sparse_layers": 1,
                "vocab_size": WORDS,
                **model,
            },
            "moe": {"num_experts": 12, "num_groups": 3, "router": {"type": "switch", "top_k": 2}},
        }
    )


@pytest.fixture(scope="module", params=[False, True])
def model(request):
    context = network_context(inference_config(_config(domain_embeddings=request.param)), WORDS, DOMAINS)
    return PanGuSigma(context), context


def test_one_row_reads_the_active_parameters(model):
    """As the planner counts them, but for the tables of positions, of which a row reads one line."""
    network, context = model
    active = count_parameters(PlannedJob(context.config, Topology(1, 1), WORDS, DOMAINS)).active
    found = bench.step_bytes(network, context, np.array([1]))
    assert found.weights == pytest.approx(4 * (active - 2 * 15 * 8), rel=1e-12)
    assert found.cache == 3 * 2 * 16 * 8 * 4  # layers, keys and values, places, width, bytes


def test_more_rows_read_more_experts(model):
    """Two rows of one domain, whose tokens go to 2 of 4 experts each: 2 experts and 2 * (1 - 1/2) more on average."""
    network, context = model
    one, two = (bench.step_bytes(network, context, np.array([0] * rows)) for rows in (1, 2))
    expert = 2 * 8 * 32 + 32 + 8
    assert two.weights - one.weights == pytest.approx(4 * (1 * expert + 2 * 8), rel=1e-12)
    assert two.cache == 2 * one.cache


def test_the_table(monkeypatch, capsys):
    monkeypatch.setattr(bench, "PROBE", (64, 64))
    assert bench.bench_decode(_config(dense_layers=0), [2]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 79
    rows, step, rate, of_row, limit, _, weights, predicted, held = lines[-1].split()
    assert rows == "2" and predicted == held == f"{2 * 2 * 2 * 16 * 8 * 4 / 1e6:.2f}"
    assert re.fullmatch(r"memory: [0-9.]+ GB/s; rows of 16 tokens, every cache full", lines[0])
    assert all(float(number) > 0 for number in (step, limit, weights)) and float(rate) >= float(of_row) >= 0
