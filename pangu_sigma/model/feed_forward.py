"""The dense feed-forward network of the lower layers. Shape legend: T tokens, d hidden size."""

from typing import Dict, Optional, Tuple

from mindspore import Tensor, nn

from locmoe_ops.dispatch.base import Dispatcher
from locmoe_ops.functions import activation
from pangu_sigma.model.dims import ModelDims
from pangu_sigma.model.layers import Linear, column_parallel, row_parallel


class FeedForward(nn.Cell):
    """`W_out act(W_in x + b_in) + b_out`, with the interface of `locmoe_ops.MoEFeedForward` and nothing to report.

    In a tensor-parallel group each rank has a part of the inner features.

    Args:
        dims: sizes. index: of the layer, unique in the network.

    Inputs: x <float>[T, d]; tokens, dispatcher: unused. Outputs: <compute_dtype>[T, d]; an empty dict.
    """

    def __init__(self, dims: ModelDims, index: int = 0) -> None:
        super().__init__()
        tensor, tag = dims.tensor, f"tensor/feed-forward {index}"
        width, inner, kind = dims.hidden_size, dims.ffn_hidden_size, dims.compute_dtype
        self.enter = tensor.copy_in(tag)
        self.w_in = Linear(width, inner, kind, sharding=column_parallel(tensor))
        self.act = activation(dims.activation)
        self.w_out = Linear(inner, width, kind, residual=True, sharding=row_parallel(tensor, tag))

    def construct(
        self, x: Tensor, tokens: Dict[str, Tensor], dispatcher: Optional[Dispatcher] = None
    ) -> Tuple[Tensor, Dict[str, Tensor]]:
        return self.w_out(self.act(self.w_in(self.enter(x)))), {}
