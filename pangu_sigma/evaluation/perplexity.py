"""Perplexity and bits per byte, by domain: of validation rows, and of any text.

An example is a row, or a piece of text as `prepare` would cut it. Its record: nats (summed over targets that count),
tokens (how many), bytes (of UTF-8 text that they stand for), its domain, and of rows also what the batch dropped, with
its first row. Perplexity is exp(nats / tokens), and so depends on the tokenizer; bits per byte, nats / (bytes * ln 2),
does not, if the same text is scored.
"""

import hashlib
import math
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from locmoe_ops.routers.selection_bias import set_locality_strength
from pangu_sigma.data.corpus import RecordKeys, cut, read_documents
from pangu_sigma.data.sources import SourceCount
from pangu_sigma.evaluation import intervals
from pangu_sigma.evaluation.measurement import MeasuredFigure, Record, finite_or_nan
from pangu_sigma.evaluation.model import EvaluatedModel
from pangu_sigma.evaluation.ranks import RankBatch
from pangu_sigma.evaluation.windows import ScoreRequest
from pangu_sigma.metrics.perplexity import perplexity_of


def perplexity_figures(records: Sequence[Record]) -> List[MeasuredFigure]:
    """By domain, and over all where there are several. Bits per byte only where there is text."""
    domains = sorted({record["domain"] for record in records})
    figures: List[MeasuredFigure] = []
    for domain in [*domains, *(["all"] if len(domains) > 1 else [])]:
        chosen = [record for record in records if domain in ("all", record["domain"])]
        tokens, size = ([record[name] for record in chosen] for name in ("tokens", "bytes"))
        nats = [finite_or_nan(record["nats"]) for record in chosen]
        estimate = intervals.ratio(nats, tokens, lambda x: perplexity_of(x) or math.inf)
        figures.append(MeasuredFigure(domain, "perplexity", len(chosen), estimate))
        if sum(size):
            estimate = intervals.ratio(nats, size, lambda x: x / math.log(2.0))
            figures.append(MeasuredFigure(domain, "bits_per_byte", len(chosen), estimate))
    return figures


class ValidationRows:
    """The fixed validation rows (`train.eval_rows` of them), in batches that are always the same.

    Args:
        model: of a prepared folder.
        batches: the rows, each batch with the rank that has it.
        local_term: False: with the routers' local term off (of use as trained alone; elsewhere it changes nothing).
    """

    def __init__(self, model: EvaluatedModel, batches: Sequence[RankBatch], local_term: bool = True) -> None:
        self.name = "validation" if local_term else "validation-no-local"
        self.chunk = model.scorer.rows
        self._model, self._batches, self._local_term = model, batches, local_term
        self._bytes = np.asarray(model.tokenizer.byte_lengths)
        # Batch and row of each example; other rows fill a rank's last batch up.
        self._places = [
            (number, int(row))
            for number, (_, batch) in enumerate(batches)
            for row in np.flatnonzero(batch.loss_mask.sum(1))
        ]
        self._latest: Tuple[int, List[Record]] = (-1, [])

    @property
    def size(self) -> int:
        return len(self._places)

    def header(self) -> Dict[str, Any]:
        assert self._model.data is not None  # whose rows these are
        ranks = {"ranks": self._model.data_ranks} if self._model.data_ranks > 1 else {}
        return {"data": self._model.data.manifest.fingerprint, "rows": self.size, **ranks}

    def measure(self, numbers: Sequence[int]) -> List[Record]:
        found: List[Record] = []
        for batch, row in (self._places[number] for number in numbers):
            if self._latest[0] != batch:
                self._latest = batch, self._records(self._batches[batch])
            found.append(self._latest[1][row])
        return found

    def figures(self, records: Sequence[Record]) -> List[MeasuredFigure]:
        return perplexity_figures(records)

    def notes(self, records: Sequence[Record]) -> List[str]:
        dropped = sum(record["dropped"] for record in records)
        return [f"{self.name}: {dropped} assignments of tokens to experts were dropped"] if dropped else []

    def _records(self, of_rank: RankBatch) -> List[Record]:
        rank, batch = of_rank
        if not self._local_term:
            set_locality_strength(self._model.network, 0.0)
        if self._model.ranks is not None:
            self._model.ranks.play(rank)
        found = self._model.scorer.tokens(batch)
        losses = found.losses * batch.loss_mask
        counted = batch.loss_mask > 0
        sizes = (self._bytes[batch.targets] * counted).sum(1)
        records: List[Record] = [
            {
                "domain": self._model.domains[domain],
                "nats": float(nats),
                "tokens": int(tokens),
                "bytes": int(size),
                "dropped": 0,
            }
            for domain, nats, tokens, size in zip(batch.domain, losses.sum(1), counted.sum(1), sizes)
        ]
        records[0]["dropped"] = found.dropped
        return records


class TextPieces:
    """Text of one domain: a file, a folder, JSONL or Parquet, read and cut into pieces as `prepare` does it.

    A piece is scored as a document: after its domain's tag, its end-of-text token included.

    Args:
        model: what reads it.
        domain: name of the domain.
        path: of the text.

    Raises InputError: the domain or the text is not there.
    """

    chunk = 64

    def __init__(self, model: EvaluatedModel, domain: str, path: str) -> None:
        self._model, self._domain = model, model.domain(domain, f"--text {domain}={path}")
        settings = model.config.data.prepare
        limit, keys = settings.document_bytes, RecordKeys(settings.text_key, settings.domain_key)
        self._count = SourceCount()
        documents = read_documents(domain, path, key="--text ", count=self._count, keys=keys)
        self._pieces = [piece for document in documents for piece in cut(document.text, limit)]
        digest = hashlib.sha256("\0".join(self._pieces).encode()).hexdigest()
        self.name = f"text-{domain}-{digest[:8]}"
        self._header = {"text": digest}

    @property
    def size(self) -> int:
        return len(self._pieces)

    def header(self) -> Dict[str, Any]:
        return self._header

    def measure(self, numbers: Sequence[int]) -> List[Record]:
        model, pieces = self._model, [self._pieces[number] for number in numbers]
        requests = [
            ScoreRequest(
                [model.tag(self._domain)], [*model.tokenizer.encode(piece), model.tokenizer.end_of_text], self._domain
            )
            for piece in pieces
        ]
        domain = model.domains[self._domain]
        return [
            {"domain": domain, "nats": score.nats, "tokens": score.tokens, "bytes": len(piece.encode("utf-8"))}
            for score, piece in zip(model.scorer.score(requests), pieces)
        ]

    def figures(self, records: Sequence[Record]) -> List[MeasuredFigure]:
        return perplexity_figures(records)

    def notes(self, records: Sequence[Record]) -> List[str]:
        left_out = self._count.describe()
        return [f"{self.name}: {left_out}"] if left_out else []
