"""Rows of a batch on their way from prompt to output: what the graphs are fed, step by step.

Shape legend: B rows of the graphs, L places of the cache, V words.
"""

from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mindspore import Tensor

from pangu_sigma.data.batch import make_batch
from pangu_sigma.inference.graphs import GraphPair
from pangu_sigma.inference.sampling import RowSampler


class Continuation(NamedTuple):
    """How rows fall into documents.

    Attributes: end_of_text: id that ends one; resets: positions begin anew behind it.
    """

    end_of_text: int
    resets: bool


class DecodedRow(NamedTuple):
    """One prompt.

    Attributes: prompt: its ids; domain, home: of the row; room: most tokens of output; sampler: chooses them.
    """

    prompt: Sequence[int]
    domain: int
    home: int
    room: int
    sampler: RowSampler

    @property
    def places(self) -> int:
        """Places of the cache that it may need: all tokens but the last of the output, which is not read."""
        return len(self.prompt) + self.room - 1


class DecodedBatch:
    """Up to B rows, together through one pair of graphs; rows without a prompt are fed zeros and looked at by nobody.

    Reads the prompts, each of 1 to L ids, when it is made.

    Args:
        pair: the graphs.
        prompts, domains, homes: ids of each prompt; domain and home of its row.
        document: see `Continuation`.

    Attributes: logits <float32>[B, V], of each row's next token.
    """

    def __init__(
        self,
        pair: GraphPair,
        prompts: Sequence[Sequence[int]],
        domains: Sequence[int],
        homes: Sequence[int],
        document: Continuation,
    ) -> None:
        self._pair, self._document = pair, document
        ids = np.zeros((pair.rows, pair.length + 1), np.int32)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        places = np.zeros(pair.rows, np.int32)
        places[: len(prompts)] = [len(prompt) - 1 for prompt in prompts]
        read = make_batch(
            ids, _filled(domains, pair.rows), _filled(homes, pair.rows), document.end_of_text, document.resets
        )
        self._places, self._last = places, ids[np.arange(pair.rows), places]
        self._positions = read.positions[np.arange(pair.rows), places]
        self._domain, self._home = Tensor(read.domain), Tensor(read.home)
        self._take(pair.prefill(Tensor(read.ids), Tensor(read.positions), Tensor(places), self._domain, self._home))

    def step(self, tokens: Sequence[Optional[int]]) -> None:
        """Reads one token a row; None: the row is at its end, and stays where it is."""
        fed = self._last.copy()
        for row, token in enumerate(tokens):
            if token is None:
                continue
            begins = self._document.resets and self._last[row] == self._document.end_of_text
            self._positions[row] = 0 if begins else self._positions[row] + 1
            self._places[row] += 1
            fed[row] = self._last[row] = token
        # (B, 1) <- (B,); copies, as the arrays change while the graph may still read them
        columns = (Tensor(array.reshape(-1, 1).copy()) for array in (fed, self._positions, self._places))
        self._take(self._pair.decode(*columns, self._domain, self._home, *self.caches))

    def _take(self, outputs: Tuple[Tensor, ...]) -> None:
        self.caches = outputs[1:]
        self.logits = outputs[0].asnumpy()


def _filled(values: Sequence[int], rows: int) -> np.ndarray:
    """<int32>[rows], zeros behind the values."""
    return np.asarray([*values, *[0] * (rows - len(values))], np.int32)


def decode(
    pair: GraphPair, rows: Sequence[DecodedRow], document: Continuation, vocab_size: int, stop_at_end: bool
) -> Iterator[List[Optional[int]]]:
    """Yields the next token of each row, None once it is at its end, until all are.

    Args:
        pair: the graphs. rows: up to as many prompts as the graphs have rows. document: see `Continuation`.
        vocab_size: ids from here on are rows of the word table without a word, never chosen.
        stop_at_end: whether a row is at its end with the end of its text.
    """
    batch = DecodedBatch(
        pair, [row.prompt for row in rows], [row.domain for row in rows], [row.home for row in rows], document
    )
    left = [row.room for row in rows]
    while True:
        tokens: List[Optional[int]] = [None] * len(rows)
        for index, row in enumerate(rows):
            if left[index] == 0:
                continue
            token = row.sampler.next(batch.logits[index, :vocab_size])
            left[index] = 0 if stop_at_end and token == document.end_of_text else left[index] - 1
            tokens[index] = None if stop_at_end and token == document.end_of_text else token
        yield tokens
        if not any(left):
            return
        batch.step([token if room else None for token, room in zip(tokens, left)])  # a row's last token is not read
