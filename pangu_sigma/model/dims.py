"""What every layer needs to know of its surroundings: sizes, resolved once from the configuration, and what a pass over
a batch hands to every block.

Shape legend: B sequences, S positions, T = B * S tokens, L places of a cache.
"""

from dataclasses import dataclass
from typing import Dict, TypedDict

from mindspore import Tensor, dtype

from locmoe_ops.kernels import CPU, KernelSet, kernel_set
from locmoe_ops.tensor_parallel import ALONE, TensorGroup
from pangu_sigma.config.ascend import resolve_runtime
from pangu_sigma.config.derived import ffn_hidden_size
from pangu_sigma.config.schema import Config
from pangu_sigma.model.layers import Arithmetic

_DTYPES = {"fp32": dtype.float32, "fp16": dtype.float16, "bf16": dtype.bfloat16}


class BatchContext(TypedDict):
    """What all blocks read of a batch, apart from the residual stream.

    Attributes:
        mask: <float32>[B, 1, S, S] (with a cache [B, 1, S, L]): 0 where a token may look, -10000 elsewhere.
        positions: <int32>[B, S], place of a token in its document.
        seeds: <int32>[B], of the numbers that dropout draws.
        tokens: ids, domain, home, seed <int32>[T] each, and word <float32>[T, d] where routers want it: what
            `MoEFeedForward` reads.
    """

    mask: Tensor
    positions: Tensor
    seeds: Tensor
    tokens: Dict[str, Tensor]


@dataclass(frozen=True)
class ModelDims:
    """Sizes and rates of the network for one rank's micro-batch; compiled shapes follow from them.

    Attributes:
        sequences: B, sequences of the micro-batch on this rank. sequence_length: S. hidden_size: d.
        num_heads: attention heads of all ranks. ffn_hidden_size: inner features of a feed-forward network.
        vocab_size: V, words of all ranks. domains: how many there are.
        activation: name of the feed-forward networks' function. epsilon: of the normalisations.
        embedding_dropout, attention_dropout, hidden_dropout: rates in [0, 1).
        compute_dtype: of the matmuls; parameters stay float32.
        flash_attention: Ascend's fused kernel in place of scores, softmax and mixing.
        tensor: the ranks that share out heads, inner features and words among themselves.
        kernels: forms of elementary operations for the device.
    """

    sequences: int
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
    flash_attention: bool = False
    tensor: TensorGroup = ALONE
    kernels: KernelSet = CPU

    @property
    def arithmetic(self) -> Arithmetic:
        """Of the linear maps."""
        return Arithmetic(self.compute_dtype, self.kernels)

    @property
    def tokens(self) -> int:
        """T: tokens of the micro-batch."""
        return self.sequences * self.sequence_length

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


def model_dims(config: Config, sequences: int, vocab_size: int, domains: int, tensor: TensorGroup = ALONE) -> ModelDims:
    """Resolves the `null` defaults of the model section.

    Args:
        config: the configuration; its sections model and runtime count.
        sequences: sequences of a micro-batch on this rank.
        vocab_size, domains: of the prepared data.
        tensor: this rank's tensor-parallel group, whose size divides heads, inner width and words.
    """
    model = config.model
    return ModelDims(
        sequences=sequences,
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
        kernels=kernel_set(resolve_runtime(config).runtime.device),
    )
