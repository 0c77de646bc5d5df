"""What a configuration leaves open and the planner must know: ranks, batches, words and domains."""

import pytest

from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.planner.job import plan_job


def test_batches(make_job):
    """8 rows of 12 tokens over 4 data-parallel ranks of 2 tensor-parallel ones."""
    job = make_job(2, 4, parallel={"expert": 2, "tensor": 2}, train={"micro_batch_size": 1})
    assert (job.topology.data, job.rows, job.micro_batches, job.tokens, job.global_tokens) == (4, 1, 2, 12, 96)
    whole = make_job(2, 4, parallel={"expert": 2, "tensor": 2})
    assert (whole.rows, whole.micro_batches) == (2, 1)


def test_layers(make_job):
    job = make_job(model={"dense_layers": 3, "sparse_layers": 2, "sparse_query_layer": True})
    assert (job.blocks, job.dense_layers, job.sparse_layers) == (5, 3, 3)


def test_prepared_data_says_words_and_domains(make_config, tiny_data):
    data = PreparedData.open(str(tiny_data))
    config = make_config(model={"vocab_size": None, "sequence_length": 32}, data={"path": str(tiny_data)})
    job = plan_job(config, 1, 1)
    assert (job.words, job.domains) == (data.vocab_size, len(data.domains))


@pytest.mark.parametrize(
    ("data", "moe", "expected"),
    [
        ({}, {}, (8000, 2)),  # the tokenizer to be trained has 8000 pieces by default
        ({"vocab_size": 500, "sources": {"a": "a", "b": "b", "c": "c"}}, {"num_groups": 1}, (500, 3)),
        ({}, {"domain_groups": [0, 1, 1]}, (8000, 3)),
    ],
)
def test_data_to_be_prepared(make_config, data, moe, expected):
    config = make_config(model={"vocab_size": None}, data={"prepare": data}, moe=moe)
    job = plan_job(config, 1, 1)
    assert (job.words, job.domains) == expected
