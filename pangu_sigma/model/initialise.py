"""Initial weights, the same for any parallel degree: every parameter draws from a stream named after it, of which a
tensor-parallel rank keeps its part.
"""

import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Callable, List

from mindspore import Parameter, Tensor

from locmoe_ops.draws import normal_part
from locmoe_ops.experts import ExpertBank
from locmoe_ops.routers.gates import DenseGate
from locmoe_ops.tensor_parallel import slice_of, whole_shape
from pangu_sigma.model.block import QueryBlock
from pangu_sigma.model.embedding import Embedding
from pangu_sigma.model.layers import Linear
from pangu_sigma.model.pangu_sigma import PanGuSigma


def initialise(network: PanGuSigma, seed: int, std: float, experts_alike: int = 1, threads: int = 1) -> None:
    """Normal(0, std) for matrices and embeddings; maps onto the residual stream std / sqrt(2 * layers); biases 0, norms
    1. PanGu-alpha uses 0.02; the smaller residual maps (GPT-2's rule) keep the stream's variance independent of depth.

    Args:
        network: whose parameters are set.
        seed: of the run; every Cell draws from a stream of its own, which follows from the seed and the Cell's name.
        std: standard deviation.
        experts_alike: so many neighbouring experts begin as copies of one network.
        threads: that draw at the same time; NumPy draws beside Python.
    """
    residual_std = std / math.sqrt(2.0 * (len(network.blocks) + 1))
    draws: List[Callable[[], None]] = []
    for name, cell in network.cells_and_names():
        stream = zlib.crc32(f"{seed}/{name}".encode())
        if isinstance(cell, ExpertBank):
            draws.append(partial(cell.initialise, stream, std, residual_std, experts_alike))
        elif isinstance(cell, DenseGate):
            draws.append(partial(cell.initialise, stream, std))
        elif isinstance(cell, Linear):
            draws.append(partial(_draw, cell.weight, stream, residual_std if cell.residual else std))
        elif isinstance(cell, Embedding):
            draws.append(partial(_draw, cell.word, stream, std))
            draws.append(partial(_draw, cell.position, stream + 1, std))
        elif isinstance(cell, QueryBlock):
            draws.append(partial(_draw, cell.top_query, stream, std))
    with ThreadPoolExecutor(threads) as pool:
        for drawn in [pool.submit(draw) for draw in draws]:
            drawn.result()


def _draw(parameter: Parameter, stream: int, std: float) -> None:
    """Sets this rank's part of the parameter, which is the same at any parallel degree."""
    parameter.set_data(Tensor(normal_part(stream, whole_shape(parameter), std, slice_of(parameter))))
