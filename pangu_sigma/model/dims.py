"""What every layer needs to know of its surroundings, resolved once from the configuration."""

from dataclasses import dataclass

from mindspore import dtype

from locmoe_ops.tensor_parallel import ALONE, TensorGroup
from pangu_sigma.config.derived import ffn_hidden_size
from pangu_sigma.config.schema import Config

_DTYPES = {"fp32": dtype.float32, "fp16": dtype.float16, "bf16": dtype.bfloat16}


@dataclass(frozen=True)
class ModelDims:
    """Sizes and rates of the network for one rank's micro-batch of `rows` rows; compiled shapes follow from them."""

    rows: int
    sequence_length: int
    hidden_size: int
    num_heads: int
    ffn_hidden_size: int
    vocab_size: int
    domains: int
    activation: str
    epsilon: float
    embedding_dropout: float
    attention_dropout: float
    hidden_dropout: float
    compute_dtype: dtype.Type
    flash_attention: bool = False  # Ascend's fused kernel in place of scores, softmax and mixing
    tensor: TensorGroup = ALONE  # the ranks that share out heads, inner features and words among themselves

    @property
    def tokens(self) -> int:
        """T: tokens of the micro-batch."""
        return self.rows * self.sequence_length

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def local_heads(self) -> int:
        """Attention heads of this rank."""
        return self.num_heads // self.tensor.size

    @property
    def local_vocab_size(self) -> int:
        """Words of the vocabulary whose rows of the word table, and whose logits, this rank has."""
        return self.vocab_size // self.tensor.size


def model_dims(config: Config, rows: int, vocab_size: int, domains: int, tensor: TensorGroup = ALONE) -> ModelDims:
    """Resolves the `null` defaults of the model section.

    `rows`: rows of a micro-batch on this rank. `tensor`: its tensor-parallel group, whose size divides heads, inner
    width and words.
    """
    model = config.model
    return ModelDims(
        rows=rows,
        sequence_length=model.sequence_length,
        hidden_size=model.hidden_size,
        num_heads=model.num_heads,
        ffn_hidden_size=ffn_hidden_size(config),
        vocab_size=vocab_size,
        domains=domains,
        activation=model.activation,
        epsilon=model.layer_norm_epsilon,
        embedding_dropout=model.embedding_dropout,
        attention_dropout=model.attention_dropout,
        hidden_dropout=model.hidden_dropout,
        compute_dtype=_DTYPES[config.runtime.precision],
        flash_attention=config.runtime.fused.attention,
        tensor=tensor,
    )
