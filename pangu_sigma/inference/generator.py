"""Generation from Python.

generator = Generator.load("runs/quickstart/locmoe")
print(generator.generate_text(["The President"], ["en"], SamplingSettings(max_new_tokens=100))[0])
"""

from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Union

import numpy as np

from mindspore import Tensor

from locmoe_ops.errors import InputError
from locmoe_ops.moe import check_token_ids
from pangu_sigma.checkpoint.locate import StrPath
from pangu_sigma.config.schema import Config
from pangu_sigma.data.batch import make_batch
from pangu_sigma.inference.decoding import Continuation, DecodedRow, decode
from pangu_sigma.inference.graphs import CompiledGraphs, Graphs
from pangu_sigma.inference.load import Model, TextCodec, load_model
from pangu_sigma.inference.sampling import RowSampler, SamplingSettings, row_generators
from pangu_sigma.runtime.runtime import Runtime

__all__ = ["Generator", "SamplingSettings"]

_DEFAULT = SamplingSettings()
_UNFINISHED = "\ufffd"  # what bytes decode to that may be the beginning of a character


class Generator:
    """A model that continues prompts. A row's output does not depend on the other rows of a call: which graphs it
    goes through follows from its own length, and no token of it looks at, or makes room for, those of others.

    In a job of several ranks, each of which has a share of the experts, all must make the same calls, and get the same
    answers. A context manager that leaves the job in good order; on one process there is nothing to leave.

    Attributes:
        codec: tokenizer, domains, and what ids mean.
        is_first: whether this rank is the one to show answers.

    Args:
        codec: see above. graphs: a supply of compiled graphs.
        homes: of each domain's rows, see `Model`.
        full: ids, domain, home -> logits, for `logits`; None: there are none.
        runtime: of one rank of several; None: there is nothing to leave. `load` says how to come by all of them.
    """

    def __init__(
        self,
        codec: TextCodec,
        graphs: Graphs,
        homes: Sequence[int],
        full: Optional[Callable[..., np.ndarray]] = None,
        runtime: Optional[Runtime] = None,
    ) -> None:
        self.codec = codec
        self.is_first = runtime is None or runtime.is_first
        self._runtime = runtime
        self._graphs = graphs
        self._homes = tuple(homes)
        self._full = full

    @classmethod
    def load(
        cls,
        source: Union[Config, StrPath],
        tokenizer: Union[str, Path, None] = None,
        local_term: bool = False,
        batch_size: int = 8,
    ) -> "Generator":
        """The model of a configuration's run, a run directory, or a checkpoint folder. Graphs are compiled when first
        used. Processes that msrun or a rank table started share the experts, in equal parts.

        Args:
            source, tokenizer, local_term: see `load_model`.
            batch_size: rows of the graphs, which are decoded together. Fewer prompts take as long.

        Raises InputError.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1")
        model = load_model(source, tokenizer, local_term, spread=True)
        return cls(model.codec, CompiledGraphs(model, batch_size), model.homes, _FullForward(model), model.runtime)

    def __enter__(self) -> "Generator":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._runtime is not None:
            self._runtime.__exit__(*error)

    def generate(
        self, prompt_ids: Sequence[Sequence[int]], domains: Sequence[int], settings: SamplingSettings = _DEFAULT
    ) -> List[List[int]]:
        """Ids that follow each prompt, without the end-of-text that ends them.

        Args:
            prompt_ids: ids of each prompt. domains: its domain's number.
            settings: how tokens are chosen, and when a row ends.

        Raises InputError: a prompt is empty or fills the model's length, an id or domain is out of range, or there are
        not as many domains as prompts.
        """
        outputs: List[List[int]] = [[] for _ in prompt_ids]
        rows = self._rows(prompt_ids, domains, settings)
        for numbers in self._batches(rows):
            for tokens in self._decode([rows[number] for number in numbers], settings):
                for number, token in zip(numbers, tokens):
                    if token is not None:
                        outputs[number].append(token)
        return outputs

    def generate_text(
        self, prompts: Sequence[str], domains: Sequence[Union[str, int]], settings: SamplingSettings = _DEFAULT
    ) -> List[str]:
        """The same for texts.

        Args:
            prompts: beginnings of documents. domains: of each, by name or number. settings: as `generate`.
        """
        _check_one_each(prompts, domains)
        numbers = [self.codec.domain(domain) for domain in domains]
        ids = [self.codec.encode(prompt, number) for prompt, number in zip(prompts, numbers)]
        return [self.codec.decode(output) for output in self.generate(ids, numbers, settings)]

    def stream(self, prompt_ids: Sequence[int], domain: int, settings: SamplingSettings = _DEFAULT) -> Iterator[int]:
        """The ids of `generate` for one prompt, each as soon as it is there.

        Args:
            prompt_ids: ids of the prompt. domain: its number. settings: as `generate`.

        Raises InputError at once, as `generate`.
        """
        steps = self._decode(self._rows([prompt_ids], [domain], settings), settings)
        return (token for (token,) in steps if token is not None)

    def stream_text(self, prompt: str, domain: Union[str, int], settings: SamplingSettings = _DEFAULT) -> Iterator[str]:
        """The text of `generate_text` for one prompt, in pieces of whole characters.

        Args:
            prompt: beginning of a document. domain: by name or number. settings: as `generate`.

        Raises InputError at once.
        """
        number = self.codec.domain(domain)
        return self._pieces(self.stream(self.codec.encode(prompt, number), number, settings))

    def _pieces(self, tokens: Iterator[int]) -> Iterator[str]:
        ids: List[int] = []
        told = 0
        for token in tokens:
            ids.append(token)
            whole = self.codec.decode(ids).rstrip(_UNFINISHED)
            if len(whole) > told:
                yield whole[told:]
                told = len(whole)
        rest = self.codec.decode(ids)[told:]
        if rest:
            yield rest

    def logits(self, ids: Sequence[int], domain: int) -> np.ndarray:
        """<float32>[len(ids), V]: scores of what follows each id, from the network that training evaluates, without a
        cache.

        Raises InputError: as `generate`; or the model was exported.
        """
        if self._full is None:
            raise InputError("logits: an exported model has graphs for generation alone; expected a checkpoint")
        self._check([ids], [domain], self.codec.sequence_length)
        return self._full(ids, domain, self._homes[domain])

    def _rows(
        self, prompts: Sequence[Sequence[int]], domains: Sequence[int], settings: SamplingSettings
    ) -> List[DecodedRow]:
        self._check(prompts, domains, self.codec.sequence_length)
        generators = row_generators(prompts, domains, settings.seed)
        # The last token of the output is not read: a prompt of n ids leaves room for one token more than places.
        return [
            DecodedRow(
                prompt,
                int(domain),
                self._homes[domain],
                min(settings.max_new_tokens, self.codec.sequence_length - len(prompt) + 1),
                RowSampler(settings, prompt, generator),
            )
            for prompt, domain, generator in zip(prompts, domains, generators)
        ]

    def _check(self, prompts: Sequence[Sequence[int]], domains: Sequence[int], longest: int) -> None:
        _check_one_each(prompts, domains)
        for number, prompt in enumerate(prompts):
            if not 1 <= len(prompt) <= longest:
                raise InputError(
                    f"prompt {number} has {len(prompt)} tokens; expected 1 to {longest}, the model's length"
                )
            check_token_ids(
                np.asarray(prompt), np.asarray(domains[number]), self.codec.vocab_size, len(self.codec.domains)
            )

    def _batches(self, rows: Sequence[DecodedRow]) -> Iterator[List[int]]:
        """Numbers of the rows that are decoded together: rows of one length bucket."""
        by_length: Dict[int, List[int]] = {}
        for number, row in enumerate(rows):
            by_length.setdefault(self._graphs.pair(row.places).length, []).append(number)
        for numbers in by_length.values():
            yield from (
                numbers[start : start + self._graphs.rows] for start in range(0, len(numbers), self._graphs.rows)
            )

    def _decode(self, rows: Sequence[DecodedRow], settings: SamplingSettings) -> Iterator[List[Optional[int]]]:
        pair = self._graphs.pair(max(row.places for row in rows))
        document = Continuation(self.codec.tokenizer.end_of_text, self.codec.resets)
        return decode(pair, rows, document, self.codec.tokenizer.vocab_size, settings.stop_at_end)


def _check_one_each(prompts: Sequence, domains: Sequence) -> None:
    if len(prompts) != len(domains):
        raise InputError(f"{len(domains)} domains for {len(prompts)} prompts; expected one each")


class _FullForward:
    """Logits of one row from the network of training, in evaluation."""

    def __init__(self, model: Model) -> None:
        self._network, self._codec = model.network, model.codec

    def __call__(self, ids: Sequence[int], domain: int, home: int) -> np.ndarray:
        row = np.zeros((1, self._codec.sequence_length + 1), np.int32)
        row[0, : len(ids)] = ids
        batch = make_batch(
            row, np.array([domain]), np.array([home]), self._codec.tokenizer.end_of_text, self._codec.resets
        )
        fields = (batch.ids, batch.positions, batch.documents, batch.domain, batch.home, batch.home)
        logits, _ = self._network(*(Tensor(field) for field in fields))
        return logits.asnumpy()[: len(ids)].astype(np.float32)
