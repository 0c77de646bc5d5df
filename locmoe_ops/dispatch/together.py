"""Order between operations that exchange no data."""

from typing import List, Tuple

from mindspore import Tensor, nn, ops


class Together(nn.Cell):
    """The identity on several tensors, none of which is used before all are there; the same for their gradients.

    It puts computation between the start and the end of a collective: what must happen first is passed through together with
    what comes later.

    Inputs and outputs: a list of tensors.
    """

    def construct(self, tensors: List[Tensor]) -> List[Tensor]:
        return _tie(tensors)

    def bprop(self, tensors: List[Tensor], out: List[Tensor], dout: List[Tensor]) -> Tuple[List[Tensor]]:
        return (_tie(dout),)


def _tie(tensors: List[Tensor]) -> List[Tensor]:
    tied = []
    for tensor in tensors:
        held = tensor
        for other in tensors:
            held = ops.depend(held, other)
        tied.append(held)
    return tied
