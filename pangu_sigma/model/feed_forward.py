"""The dense feed-forward network of the lower layers."""

from typing import Dict, Tuple

from mindspore import Tensor, nn

from locmoe_ops.functions import activation
from pangu_sigma.model.dims import ModelDims
from pangu_sigma.model.layers import Linear


class FeedForward(nn.Cell):
    """`W_out act(W_in x + b_in) + b_out`, with the interface of `locmoe_ops.MoEFeedForward` and nothing to report.

    In a tensor-parallel group each rank has a part of the inner features. `index`: of the layer, unique in the network.

    Inputs: x <float>[T, d]; tokens, unused. Outputs: <compute_dtype>[T, d]; an empty dict.
    """

    def __init__(self, shape: ModelDims, index: int = 0) -> None:
        super().__init__()
        tensor, tag = shape.tensor, f"tensor/feed-forward {index}"
        self.enter = tensor.copy_in(tag)
        self.w_in = Linear(shape.hidden_size, shape.ffn_hidden_size, shape.compute_dtype, part=tensor.slice(0))
        self.act = activation(shape.activation)
        self.w_out = Linear(
            shape.ffn_hidden_size,
            shape.hidden_size,
            shape.compute_dtype,
            residual=True,
            part=tensor.slice(1),
            leave=tensor.reduce_out(tag),
        )

    def construct(self, x: Tensor, tokens: Dict[str, Tensor]) -> Tuple[Tensor, Dict[str, Tensor]]:
        return self.w_out(self.act(self.w_in(self.enter(x)))), {}
