"""`pangu-sigma bench decode`: tokens a second by batch size, against what the machine's memory allows.

A decode step reads the weights that its tokens pass through and their caches; with few rows it can be no faster than
memory brings them. Both are measured in turn, on random weights, with every row at the last place of its cache. Weights
that fit the processor's own caches may come faster than that limit.
"""

from typing import Any, Callable, List, NamedTuple, Sequence

import numpy as np

from mindspore import Tensor, nn, ops

from pangu_sigma.bench.timing import ROUNDS, WARM_UP, even_vocabulary, in_turn, seconds
from pangu_sigma.config.derived import experts_per_group
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import validate
from pangu_sigma.inference.cells import Decode, cache_bytes, empty_caches
from pangu_sigma.inference.load import inference_config, network_context
from pangu_sigma.model.initialise import initialise
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.model.parameter_groups import is_expert_parameter
from pangu_sigma.model.sparse import SparseContext
from pangu_sigma.runtime.progress import progress_bar
from pangu_sigma.runtime.runtime import start_runtime
from pangu_sigma.runtime.text_table import TableColumn, text_table

PROBE = (4096, 16384)  # of float32: 256 MiB, beyond any processor's caches
_ITEM = 4
_TITLES = (
    "rows",
    "ms a step",
    "tokens/s",
    "a row",
    "limit by\nmemory",
    "share",
    "weights\nread, MB",
    "cache, MB\npredicted",
    "cache, MB\nheld",
)


class StepBytes(NamedTuple):
    """What a decode step has to read."""

    weights: float
    cache: float


def bench_decode(config: Config, batch_sizes: Sequence[int]) -> int:
    """Prints a line a batch size, and returns 0. Raises InputError: the configuration does not fit one process."""
    config = inference_config(config)
    validate(config, 1)
    start_runtime(config)
    vocabulary = even_vocabulary(config)
    context = network_context(config, vocabulary.vocab_size, vocabulary.domains)
    network = PanGuSigma(context)
    initialise(network, config.train.seed, config.model.init_std)
    network.set_train(False)
    steps = [_Step(network, context, rows) for rows in batch_sizes]
    # Two ways to keep memory busy, of which the faster counts: a product that reads a matrix, and a copy of it.
    matrix = np.ones((PROBE[1], PROBE[0]), np.float32)
    target, left, right, product_of = np.empty_like(matrix), Tensor(matrix[:1]), Tensor(matrix), _Product()
    launches: List[Callable[[], Any]] = [
        *steps,
        lambda: product_of(left, right),
        lambda: np.copyto(target, matrix),
    ]
    with progress_bar(len(launches), "compiling") as bar:
        for launch in launches:
            for _ in range(WARM_UP):
                seconds(launch)
            bar.update()
    *taken, product, copy = in_turn(launches, ROUNDS)
    size = _ITEM * PROBE[0] * PROBE[1]
    _print(context, steps, taken, max(size / product, 2 * size / copy))
    return 0


class _Step:
    """A decode step, with its inputs. The caches it returns are left alone: every launch reads the same."""

    def __init__(self, network: PanGuSigma, context: SparseContext, rows: int) -> None:
        shape = context.shape
        self.rows, self.network = rows, network
        self.domain = np.arange(rows, dtype=np.int32) % shape.domains
        self._cell = Decode(network, context, rows, shape.sequence_length)
        column = np.full((rows, 1), shape.sequence_length - 1, np.int32)
        ids = np.random.default_rng(rows).integers(0, shape.vocab_size, (rows, 1)).astype(np.int32)
        caches = empty_caches(network, rows, shape.sequence_length)
        self._inputs = [*map(Tensor, (ids, column, column, self.domain, np.zeros(rows, np.int32))), *caches]

    def __call__(self) -> Any:
        return self._cell(*self._inputs)

    def held(self) -> int:
        """Bytes of the caches that a step returns."""
        return sum(cache.asnumpy().nbytes for cache in self()[1:])


def step_bytes(network: PanGuSigma, context: SparseContext, domain: np.ndarray) -> StepBytes:
    """With full caches: weights that any token passes through, the experts that a group's tokens reach on average where
    the load is even, one word table for each domain that has its own, and the caches.

    Args:
        network, context: the network, and what it was built from. domain: <int>[B], one a row.
    """
    moe, shape = context.config.moe, context.shape
    top_k = moe.router.top_k
    per_group = experts_per_group(context.config)
    rows_of = np.bincount(np.asarray(context.domain_groups)[domain], minlength=moe.num_groups)
    reached = float((per_group * (1.0 - (1.0 - top_k / per_group) ** rows_of)).sum())
    total = 0.0
    for parameter in network.trainable_params():
        count = float(np.prod(parameter.shape))
        if is_expert_parameter(parameter.name):
            count *= reached / moe.num_experts
        elif parameter.name == "embedding.word" and network.embedding.per_domain:
            count *= len(set(domain.tolist())) / shape.domains
        elif parameter.name in ("embedding.position", "query_layer.top_query"):
            count *= len(domain) / shape.sequence_length
        total += count
    return StepBytes(_ITEM * total, cache_bytes(network, len(domain), shape.sequence_length))


class _Product(nn.Cell):
    """One row times a large matrix: every weight is read once."""

    def __init__(self) -> None:
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, left: Tensor, right: Tensor) -> Tensor:
        return self.matmul(left, right)


def _print(context: SparseContext, steps: List[_Step], taken: List[float], bandwidth: float) -> None:
    print(f"memory: {bandwidth / 1e9:.1f} GB/s; rows of {context.shape.sequence_length} tokens, every cache full")
    rows = []
    for step, time in zip(steps, taken):
        found = step_bytes(step.network, context, step.domain)
        limit = step.rows * bandwidth / (found.weights + found.cache)
        rate = step.rows / time
        speeds = [f"{1e3 * time:.2f}", f"{rate:.0f}", f"{1 / time:.0f}", f"{limit:.0f}", f"{rate / limit:.1%}"]
        sizes = [f"{found.weights / 1e6:.3f}", f"{found.cache / 1e6:.2f}", f"{step.held() / 1e6:.2f}"]
        rows.append([str(step.rows), *speeds, *sizes])
    print("\n".join(text_table([*map(TableColumn, _TITLES)], rows, rule=False)))
