"""What the benchmarks share: parts that run forward and backward, and launches measured in turn. Shape legend: T
tokens, k choices a token, d hidden size.

Whatever is compared is measured in turn, so that a busy or slow machine hits all alike, and after WARM_UP launches:
MindSpore's CPU kernels try several splits over the threads while they run the first times (five launches each; the
first split is one thread) and keep the best.
"""

import time
from typing import Any, Callable, List, Optional, Sequence, Tuple

import numpy as np

import mindspore as ms
from mindspore import Tensor, nn, ops

from pangu_sigma.config.schema import Config
from pangu_sigma.data.vocabulary import Vocabulary

DEFAULT_VOCAB = 8000
ROUNDS = 7
WARM_UP = 11


def even_vocabulary(config: Config) -> Vocabulary:
    """What a benchmark has in place of prepared data: as many words as `model.vocab_size` says, each as frequent as any
    other in every group's text, and the domains that `moe.domain_groups` lists, by default one a group.
    """
    moe, words = config.moe, config.model.vocab_size or DEFAULT_VOCAB
    return Vocabulary(
        words, len(moe.domain_groups or range(moe.num_groups)), np.ones((moe.num_groups, words), np.int64)
    )


def seconds(function: Callable, *inputs: Any) -> float:
    """From the call until the device has computed everything that was asked of it: reading one result takes the whole
    graph.
    """
    started = time.perf_counter()
    result = function(*inputs)
    while isinstance(result, (tuple, list)):
        result = result[0]
    if isinstance(result, Tensor):
        result.asnumpy()
    return time.perf_counter() - started


def in_turn(
    launches: Sequence[Callable[[], Any]], rounds: int, before: Optional[Callable[[], None]] = None
) -> List[float]:
    """Median seconds of each launch.

    Args:
        launches: what is measured. rounds: how often; in each round all are launched, one after the other.
        before: called ahead of every launch, and not measured.
    """
    measured = []
    for _ in range(rounds):
        row = []
        for launch in launches:
            if before is not None:
                before()
            row.append(seconds(launch))
        measured.append(row)
    return [float(median) for median in np.median(measured, axis=0)]


def random_tensor(shape: Tuple[int, ...], dtype: ms.Type = ms.float32) -> Tensor:
    """Normal numbers, the same every time."""
    return Tensor(np.random.default_rng(1).standard_normal(shape).astype(np.float32)).astype(dtype)


class ForwardBackward(nn.Cell):
    """Forward and backward of a part of the network.

    Args:
        part: with one output. positions: of the inputs that gradients are taken of, as of the part's parameters.

    The last input is the gradient of its output; the others are its own. The output enters the result, without which
    the compiler would leave out what the gradient does not need of the forward pass: all of it where the part is
    linear.
    """

    def __init__(self, part: nn.Cell, positions: Tuple[int, ...] = (0,)) -> None:
        super().__init__(auto_prefix=False)
        weights = part.trainable_params()
        self.differentiate = ops.value_and_grad(
            _Contracted(part), positions, ms.ParameterTuple(weights) if weights else None
        )
        self.set_train(True)

    def construct(self, *inputs: Tensor) -> Any:
        return self.differentiate(*inputs)


class _Contracted(nn.Cell):
    def __init__(self, part: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.part = part

    def construct(self, *inputs: Tensor) -> Tensor:
        y = self.part(*inputs[:-1])
        return (ops.cast(y, ms.float32) * ops.cast(inputs[-1], ms.float32)).sum()


class TimedRouting(nn.Cell):
    """Both levels of routing. Gates on word vectors get x.

    Args:
        routing: `MultiLevelRouting` of a layer.

    Inputs: x <float>[T, d]; ids, domain <int32>[T]. Output: <float32>[T, k], which depends on all that routers compute.
    """

    def __init__(self, routing: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.routing = routing

    def construct(self, x: Tensor, ids: Tensor, domain: Tensor) -> Tensor:
        routing = self.routing(x, {"ids": ids, "domain": domain, "home": domain * 0, "seed": ids, "word": x})
        # x enters once more so that a router without a gradient (hash) still has an output that depends on it
        return (
            routing["weight"]
            + routing["expert"] * 0.0
            + routing["aux_loss"]
            + routing["locality_loss"]
            + x[:, :1] * 0.0
        )


class _Nothing(nn.Cell):
    """Experts that do nothing, in every form that `ExpertBank` takes."""

    def construct(self, x: Tensor, of: Any = None, groups: Any = None) -> Tensor:
        return x


class Dispatch(nn.Cell):
    """There and back with experts that do nothing.

    Args:
        dispatcher: of a layer. second: as `Dispatcher.forward`.

    Inputs: x <float>[T, d]; expert <int32>[T, k]; weight <float32>[T, k]. Output: <float>[T, d].
    """

    def __init__(self, dispatcher: nn.Cell, second: Optional[Tuple[Tensor, Tensor]] = None) -> None:
        super().__init__(auto_prefix=False)
        self.dispatcher = dispatcher
        self.second = second
        self.experts = _Nothing()

    def construct(self, x: Tensor, expert: Tensor, weight: Tensor) -> Tensor:
        return self.dispatcher.forward(x, expert, weight, weight, self.experts, self.second)[0]
