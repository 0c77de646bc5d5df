import pytest

from mindspore import dtype

from pangu_sigma.config.load import config_from_dict
from pangu_sigma.model.dims import model_dims


def test_sizes_come_from_the_configuration():
    model = {
        "hidden_size": 24,
        "num_heads": 3,
        "sequence_length": 10,
        "activation": "relu",
        "layer_norm_epsilon": 1e-6,
        "embedding_dropout": 0.1,
        "attention_dropout": 0.2,
        "hidden_dropout": 0.3,
    }
    shape = model_dims(config_from_dict({"model": model}), sequences=4, vocab_size=50, domains=2)
    assert (shape.tokens, shape.head_size, shape.vocab_size, shape.domains) == (40, 8, 50, 2)
    assert (shape.activation, shape.epsilon) == ("relu", 1e-6)
    assert (shape.embedding_dropout, shape.attention_dropout, shape.hidden_dropout) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("given, expected", [(None, 96), (70, 70)])
def test_inner_width_is_four_times_the_hidden_size_unless_given(given, expected):
    config = config_from_dict({"model": {"hidden_size": 24, "num_heads": 3, "ffn_hidden_size": given}})
    assert model_dims(config, 1, 50, 1).ffn_hidden_size == expected


@pytest.mark.parametrize("name, expected", [("fp32", dtype.float32), ("fp16", dtype.float16), ("bf16", dtype.bfloat16)])
def test_precision_names_a_dtype(name, expected):
    assert model_dims(config_from_dict({"runtime": {"precision": name}}), 1, 50, 1).compute_dtype == expected
