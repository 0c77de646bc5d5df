"""Log-likelihoods of token ids, by one compiled graph of fixed shape. Shape legend: B rows, S positions, T = B * S
tokens, M sparse layers, k choices a token.
"""

from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mindspore import Tensor, dtype, nn, ops

from pangu_sigma.data.batch import Batch
from pangu_sigma.evaluation.windows import ScoreRequest, cut, lost, pack, to_batch
from pangu_sigma.model.dims import ModelDims
from pangu_sigma.model.inputs import pack_batch, unpack_batch
from pangu_sigma.model.pangu_sigma import PanGuSigma


class ScoringStep(nn.Cell):
    """The network's loss of each target, and whether the target was its first choice.

    Args:
        network: its parameters keep their names.
        traces: whether it also gives what the routers chose; only of a network with experts.

    Inputs: the tensors of `BATCH_FIELDS` (see `pangu_sigma.model.inputs`).
    Outputs: losses <float32>[T] in nats; first <int32>[T], 1 where no other word has a larger logit; dropped <float32>
    scalar, see `TokenScores`; and with `traces` expert <int32>[M, T, k] and weight <float32>[M, T, k].
    """

    def __init__(self, network: PanGuSigma, traces: bool = False) -> None:
        super().__init__(auto_prefix=False)  # parameters keep the network's own names
        self.network = network
        self.traces = traces

    def construct(self, *fields: Tensor) -> Tuple[Tensor, ...]:
        batch = unpack_batch(*fields)
        logits, reports = self.network(
            batch["ids"], batch["positions"], batch["documents"], batch["domain"], batch["home"], batch["seeds"]
        )
        logits, flat = ops.cast(logits, dtype.float32), batch["targets"].reshape(-1)  # (T,) <- (B, S)
        losses, _ = self.network.token_losses(logits, flat)
        first = ops.cast(ops.equal(ops.cast(ops.argmax(logits, -1), dtype.int32), flat), dtype.int32)
        dropped = Tensor(0.0, dtype.float32)
        for report in reports:
            dropped = dropped + (report["assigned"].sum() - report["kept"])
        if not self.traces:
            return losses, first, dropped
        expert = ops.stack([report["expert"] for report in reports])  # (M, T, k) <- M x (T, k)
        return losses, first, dropped, expert, ops.stack([report["weight"] for report in reports])


class RoutedBatch(NamedTuple):
    """What the routers chose for a batch, before drops."""

    expert: np.ndarray  # (M, B, S, k) int32, global ids
    weight: np.ndarray  # (M, B, S, k) float32


class TokenScores(NamedTuple):
    losses: np.ndarray  # (B, S) float64, nats
    first: np.ndarray  # (B, S) bool, whether the target was the likeliest word
    dropped: int  # assignments of tokens to experts that found no slot, over all sparse layers
    routed: Optional[RoutedBatch] = None  # where the scorer traces routes


class Score(NamedTuple):
    """Of a request's continuation."""

    nats: float  # -log of its probability
    tokens: int
    greedy: bool  # every id of it was the likeliest
    lost: int  # ids of the context that found no room


class Scorer:
    """Scores batches and requests with a network in evaluation mode.

    Args:
        network: set to evaluation mode here.
        shape: as the network was built; its words and domains limit the ids.
        slots_for_all: the network must drop nothing.
        traces: whether scores of batches say what the routers chose.
    """

    def __init__(self, network: PanGuSigma, shape: ModelDims, slots_for_all: bool = True, traces: bool = False) -> None:
        network.set_train(False)
        self.rows, self.length = shape.sequences, shape.sequence_length
        self._slots_for_all = slots_for_all
        self._limits = shape.vocab_size, shape.domains
        self._step = ScoringStep(network, traces)
        self._step.set_train(False)

    def tokens(self, batch: Batch) -> TokenScores:
        """Scores of all targets of a batch of `rows` rows. Raises InputError where an id lies outside its table."""
        outputs = self._step(*pack_batch(batch, *self._limits))
        losses, first, dropped, *chosen = (found.asnumpy() for found in outputs)
        assert not (self._slots_for_all and dropped), f"{dropped} assignments dropped"
        shape = batch.ids.shape  # (B, S) <- (T,)
        layers = [array.reshape(len(array), *shape, -1) for array in chosen]  # (M, B, S, k) <- (M, T, k)
        return TokenScores(
            losses.astype(np.float64).reshape(shape),
            first.reshape(shape) > 0,
            round(float(dropped)),
            RoutedBatch(*layers) if layers else None,
        )

    def score(self, requests: Sequence[ScoreRequest]) -> List[Score]:
        """One score a request, in order."""
        windows = [window for number, request in enumerate(requests) for window in cut(number, request, self.length)]
        nats, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
        packed = pack(windows, [request.domain for request in requests], self.length)
        for start in range(0, len(packed), self.rows):
            rows = packed[start : start + self.rows]
            found = self.tokens(to_batch(rows, self.rows, self.length))
            for losses, first, row in zip(found.losses, found.first, rows):
                place = 0
                for window in row.windows:
                    scored = slice(place + window.first, place + len(window.ids))
                    nats[window.request] += losses[scored].sum()
                    greedy[window.request] &= bool(first[scored].all())
                    place += len(window.ids)
        return [
            Score(float(n), len(request.continuation), bool(g), lost(request, self.length))
            for n, g, request in zip(nats, greedy, requests)
        ]
