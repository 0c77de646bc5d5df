import dataclasses

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.config import Config
from pangu_sigma.config.schema import ModelConfig, ParallelConfig
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.train.build import vocabulary


@pytest.fixture(scope="module")
def data(tiny_data):
    return PreparedData.open(str(tiny_data))


def config_with(tensor, words=None):
    return dataclasses.replace(Config(), model=ModelConfig(sequence_length=32, vocab_size=words), parallel=ParallelConfig(tensor=tensor))


def test_tensor_parallel_ranks_share_the_words_out_evenly(data):
    """The tokenizer has 320 pieces."""
    with pytest.raises(InputError, match=r"parallel.tensor \(3\) does not divide the 320 words .*model.vocab_size: 321"):
        vocabulary(config_with(3), data)
    assert vocabulary(config_with(4), data).words == 320
    padded = vocabulary(config_with(3, 321), data)
    assert padded.words == len(padded.counts) == 321 and padded.counts[320] == 0
    np.testing.assert_array_equal(padded.counts[:320], data.token_counts)
