"""An exchange that is called outside of a step."""

from typing import Any

from mindspore import nn


class ExchangeGraph(nn.Cell):
    """One exchange as a graph of its own: HCCL's documentation forbids operators by themselves in a group that graphs
    use too.

    Args:
        exchange: a collective's Cell.

    Input and output: those of `exchange`.
    """

    def __init__(self, exchange: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.exchange = exchange

    def construct(self, x: Any) -> Any:
        return self.exchange(x)
