"""What a run is built from: the vocabulary; and a training step whose slots change, against steps built with those
slots.
"""

import dataclasses

import numpy as np
import pytest

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.bench.step import random_batch
from pangu_sigma.config.schema import Config, ModelConfig, MoEConfig, ParallelConfig
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.vocabulary import Vocabulary, vocabulary
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.train.engine import TrainEngine

WORDS = Vocabulary(29, 2, np.ones(29, np.int64))
ROWS, LENGTH = 3, 12


@pytest.fixture(scope="module")
def make_parts(networks):
    def make(capacity):
        config = networks.small_config(
            {"dense_layers": 0},
            {"router": {"type": "switch"}, "capacity": capacity},
            train={"global_batch_size": ROWS, "steps": 10},
        )
        return TrainEngine(config, Runtime(create_collectives("local", Topology(1, 1), 0)), WORDS)

    return make


def values(parts):
    return {entry.name: entry.get().copy() for entry in parts.state()}


def restore(parts, saved):
    for entry in parts.state():
        entry.set(saved[entry.name])


def test_slots_change_and_change_back_without_new_graphs(make_parts):
    parts, batches = make_parts({"mode": "critical"}), [random_batch(ROWS, LENGTH, WORDS)]
    even = ROWS * LENGTH / 4
    graphs, kept = {}, []
    for step, slots in enumerate((4, 18, 4, 18), 1):
        parts.set_capacity(slots, slots / even)
        before = values(parts)
        result = parts.train_step(batches, step, 0.01)
        kept.append(float(result.sums["kept"].sum()))
        graphs.setdefault(slots, set()).add(id(parts._step))
        assert len(parts._step.whole.compile_cache) == 1
    assert all(len(steps) == 1 for steps in graphs.values()) and graphs[4] != graphs[18]
    assert kept[0] <= 16 and kept[1] > kept[0] and kept[2] <= 16 and kept[3] > kept[2]

    fixed = make_parts({"factor": 18 / even})  # from where the last step began, to the bit
    restore(fixed, before)
    again = fixed.train_step(batches, 4, 0.01)
    assert again.grad_norm == result.grad_norm
    for name, value in values(fixed).items():
        np.testing.assert_array_equal(value, values(parts)[name], err_msg=name)


@pytest.fixture(scope="module")
def data(tiny_data):
    return PreparedData.open(str(tiny_data))


def config_with(tensor, words=None):
    return dataclasses.replace(
        Config(), model=ModelConfig(sequence_length=32, vocab_size=words), parallel=ParallelConfig(tensor=tensor)
    )


def test_tensor_parallel_ranks_share_the_words_out_evenly(data):
    """The tokenizer has 320 pieces."""
    with pytest.raises(
        InputError, match=r"parallel.tensor \(3\) does not divide the 320 words .*model.vocab_size: 321"
    ):
        vocabulary(config_with(3), data)
    assert vocabulary(config_with(4), data).vocab_size == 320
    padded = vocabulary(config_with(3, 321), data)
    assert padded.vocab_size == 321 and padded.counts.shape == (1, 321) and padded.counts[0, 320] == 0
    np.testing.assert_array_equal(padded.counts[0, :320], data.token_counts)


def test_words_are_counted_in_the_text_of_their_group(data):
    one, two = data.domain_token_counts
    for domain_groups, expected in ((1, 0), [two, one]), ((1, 1), [0 * one, one + two]):
        moe = MoEConfig(num_groups=2, domain_groups=domain_groups)
        np.testing.assert_array_equal(vocabulary(dataclasses.replace(config_with(1), moe=moe), data).counts, expected)
