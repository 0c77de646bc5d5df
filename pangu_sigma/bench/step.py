"""`pangu-sigma bench step`: the compiled step against the machine's own matmul rate, and where its time goes.

Everything is measured in one process, the matmuls between the steps, so that a busy or slow machine hits both alike
(see `timing`). Parts are timed alone, forward and backward, at the shapes they have in the step; "other" is what
they leave of it (norms, residuals, embeddings, sums of gradients).
"""

from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import numpy as np

import mindspore as ms
from mindspore import Tensor, nn, ops

from locmoe_ops.errors import InputError
from pangu_sigma.bench.timing import (
    ROUNDS,
    WARM_UP,
    Dispatch,
    ForwardBackward,
    TimedRouting,
    even_vocabulary,
    in_turn,
    random_tensor,
    seconds,
)
from pangu_sigma.config.derived import (
    has_experts,
    micro_batch_sequences,
    micro_batches_per_step,
    router_keys,
    tokens_per_step,
)
from pangu_sigma.config.schema import Config
from pangu_sigma.data.batch import Batch
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.model.attention import attention_mask
from pangu_sigma.model.loss import TokenCrossEntropy
from pangu_sigma.planner.predict import step_flops
from pangu_sigma.runtime.progress import progress_bar
from pangu_sigma.runtime.runtime import start_runtime
from pangu_sigma.runtime.text_table import TableColumn, text_table
from pangu_sigma.train.engine import TrainEngine
from pangu_sigma.train.step import step_outputs

MATMUL_SIZE = 2048


class TimedPart(NamedTuple):
    """A piece of the step: its seconds once, and how many times the step runs it."""

    name: str
    seconds: float
    times: int


def bench_step(config: Config) -> int:
    """Prints FLOP rates, their ratio, and the parts' shares, all medians measured in turn; returns 0.

    Raises InputError if the configuration wants more than one rank.
    """
    for degree in ("expert", "tensor"):
        if getattr(config.parallel, degree) > 1:
            raise InputError(
                f"parallel.{degree} is {getattr(config.parallel, degree)}; bench step runs one process, expected 1"
            )
    runtime = start_runtime(config)
    words = even_vocabulary(config)
    parts = TrainEngine(config, runtime, words)
    rows = micro_batch_sequences(config, 1)
    batches = [random_batch(rows, config.model.sequence_length, words)] * micro_batches_per_step(config, 1)
    parts.capacity.prepare(1, lambda step: batches)
    left, right = (random_tensor((MATMUL_SIZE, MATMUL_SIZE)) for _ in range(2))
    product, update_alone, no_rate = _Product(), _UpdateAlone(parts), Tensor(0.0, ms.float32)
    measured: List[Tuple[float, float, float]] = []
    with progress_bar(WARM_UP + ROUNDS, "measuring") as bar:
        for round_number in range(WARM_UP + ROUNDS):
            matmul = min(seconds(product, left, right) for _ in range(5))
            step = seconds(parts.train_step, batches, round_number + 1, 1e-5)
            measured.append((matmul, step, seconds(update_alone, no_rate)))
            bar.update()
    matmul, step, update = np.median(measured[WARM_UP:], axis=0)
    pieces = _parts(parts, config, batches[0]) + [TimedPart("update", update, 1)]
    _print(config, words, matmul, step, pieces, len(batches))
    return 0


def random_batch(rows: int, length: int, words: Vocabulary) -> Batch:
    """Random ids, the same every time.

    Args:
        rows: of the batch, one document each, domains in rotation. length: positions of a row.
        words: the vocabulary that ids and domains are of.
    """
    generator = np.random.default_rng(0)
    ids = generator.integers(0, words.vocab_size, (rows, length + 1)).astype(np.int32)
    return Batch(
        ids=np.ascontiguousarray(ids[:, :-1]),
        targets=np.ascontiguousarray(ids[:, 1:]),
        positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        documents=np.zeros((rows, length), np.int32),
        loss_mask=np.ones((rows, length), np.float32),
        domain=(np.arange(rows) % words.domains).astype(np.int32),
        home=np.zeros(rows, np.int32),
    )


class _Product(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.matmul = ops.MatMul()

    def construct(self, left: Tensor, right: Tensor) -> Tensor:
        return self.matmul(left, right)


class _UpdateAlone(nn.Cell):
    """The optimizer step on any gradients of the right shapes: the parameters themselves. At rate 0 nothing moves."""

    def __init__(self, parts: TrainEngine) -> None:
        super().__init__(auto_prefix=False)
        self.gradients = ms.ParameterTuple(parts.parameters)
        self.statistics = Tensor(np.ones(parts.statistics.size, np.float32))
        self.update = parts.update

    def construct(self, learning_rate: Tensor) -> Any:
        return step_outputs(self.update(self.gradients[:], self.statistics, learning_rate))


class _Attention(nn.Cell):
    def __init__(self, attention: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.attention = attention

    def construct(self, x: Tensor, documents: Tensor, seeds: Tensor) -> Tensor:
        context = {"mask": attention_mask(documents), "positions": documents, "seeds": seeds}
        return self.attention(x, context)[0]


class _DenseFFN(nn.Cell):
    def __init__(self, feed_forward: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.feed_forward = feed_forward

    def construct(self, x: Tensor) -> Tensor:
        return self.feed_forward(x, {})[0]


class _Head(nn.Cell):
    def __init__(self, head: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.head = head
        self.cross_entropy = TokenCrossEntropy()

    def construct(self, x: Tensor, word: Tensor, domain: Tensor, targets: Tensor) -> Tensor:
        return self.cross_entropy(self.head(x, word, domain).astype(ms.float32), targets)[0]


def _parts(parts: TrainEngine, config: Config, batch: Batch) -> List[TimedPart]:
    """Seconds of each kind of part, per micro-batch."""
    network, model = parts.network, config.model
    network.set_train(True)
    tokens, d = batch.ids.size, model.hidden_size
    x, dy = random_tensor((tokens, d)), random_tensor((tokens, d))
    documents, seeds = Tensor(batch.documents), Tensor(batch.home)
    domain = Tensor(np.repeat(batch.domain, batch.ids.shape[1]))
    blocks = list(network.blocks)
    dense = [b.feed_forward for b in [*blocks, network.query_layer] if not hasattr(b.feed_forward, "dispatcher")]
    sparse = [b.feed_forward for b in [*blocks, network.query_layer] if hasattr(b.feed_forward, "dispatcher")]
    found = [
        TimedPart(
            "head and loss",
            _time(
                _Head(network.head),
                x,
                network.embedding.word,
                Tensor(batch.domain),
                Tensor(batch.targets.reshape(-1)),
                random_tensor((tokens,)),
                positions=(0, 1),
            ),
            1,
        )
    ]
    if blocks:  # the query layer's attention is counted as one more of the same
        found.append(
            TimedPart("attention", _time(_Attention(blocks[0].attention), x, documents, seeds, dy), len(blocks) + 1)
        )
    if dense:
        found.append(TimedPart("dense FFN", _time(_DenseFFN(dense[0]), x, dy), len(dense)))
    if has_experts(config):
        found.extend(_sparse_parts(sparse, config, x, Tensor(batch.ids.reshape(-1)), domain, dy))
    return found


def _sparse_parts(
    sparse: List[nn.Cell], config: Config, x: Tensor, ids: Tensor, domain: Tensor, dy: Tensor
) -> List[TimedPart]:
    layer, gradient = sparse[0], random_tensor((x.shape[0], config.moe.router.top_k))
    chosen = layer.routing(x, {"ids": ids, "domain": domain, "home": domain * 0, "seed": ids, "word": x})
    keys = router_keys(config)
    routing = [
        TimedPart(
            f"routing, {key}" if config.moe.routers else "routing",
            _time(TimedRouting(sparse[keys.index(key)].routing), x, ids, domain, gradient),
            keys.count(key),
        )
        for key in dict.fromkeys(keys)  # each once, bottom up
    ]
    second = (chosen["second_expert"], chosen["second_weight"]) if layer.repicks else None
    buffers = random_tensor((config.moe.num_experts, layer.dispatcher.expert_rows, config.model.hidden_size))
    found = [
        TimedPart("experts", _time(layer.experts, buffers, buffers), len(sparse)),
        *routing,
        TimedPart(
            "dispatch",
            _time(Dispatch(layer.dispatcher, second), x, chosen["expert"], chosen["weight"], dy),
            len(sparse),
        ),
    ]
    if layer.has_shared_experts:
        found.append(TimedPart("shared experts", _time(layer.shared_experts, x, dy), len(sparse)))
    return found


def _time(part: nn.Cell, *inputs: Any, positions: Tuple[int, ...] = (0,)) -> float:
    """Seconds of `part`, as `ForwardBackward` takes its inputs."""
    both = ForwardBackward(part, positions)
    launches: List[Callable[[], Any]] = [lambda: both(*inputs)]
    in_turn(launches, WARM_UP)
    return in_turn(launches, ROUNDS)[0]


def _print(
    config: Config, words: Vocabulary, matmul: float, step: float, pieces: List[TimedPart], micro_batches: int
) -> None:
    tokens = tokens_per_step(config)
    flops: Dict[str, float] = step_flops(config, tokens, words.vocab_size)
    machine = 2.0 * MATMUL_SIZE**3 / matmul / 1e9
    model = sum(flops.values()) / step / 1e9
    speeds = [
        (f"matmul {MATMUL_SIZE} x {MATMUL_SIZE} x {MATMUL_SIZE}, fp32", f"{machine:.1f}"),
        (f"compiled step, {config.runtime.precision}, {tokens} tokens", f"{model:.1f}"),
    ]
    lines = text_table((TableColumn("", "<"), TableColumn("GFLOP/s")), speeds, rule=False)
    lines += [f"{step:.3f} s a step, {tokens / step:,.0f} tokens/s; model over machine {model / machine:.1%}", ""]
    rows, left = [], step
    for part in sorted(pieces, key=lambda p: -p.seconds * p.times):
        times = part.times * (micro_batches if part.name != "update" else 1)
        left -= part.seconds * times
        rows.append((part.name, str(times), f"{part.seconds * 1e3:.1f}", f"{part.seconds * times / step:.1%}"))
    rows.append(("other", "", "", f"{left / step:.1%}"))
    titles = ("times", "ms each", "share of step")
    lines += text_table([TableColumn("part", "<"), *map(TableColumn, titles)], rows, rule=False)
    routing = sum(p.seconds * p.times for p in pieces if p.name.startswith(("routing", "dispatch"))) * micro_batches
    if has_experts(config):
        lines.append(f"routing and dispatch together: {routing / step:.1%} of the step")
    print("\n".join(lines))
