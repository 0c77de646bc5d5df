"""A model for EleutherAI's lm-evaluation-harness (the package `lm_eval`, which need not be installed otherwise).

    import lm_eval
    from pangu_sigma.evaluation.lm_eval import opened

    with opened("runs/quickstart/locmoe", domain="en") as model:
        results = lm_eval.simple_evaluate(model=model, tasks=["lambada_openai"])

Texts are scored as `pangu-sigma eval` scores them: after the domain's tag, no token dropped.
"""

from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from tqdm import tqdm

from pangu_sigma.checkpoint.locate import MODEL, read_configuration
from pangu_sigma.config.validate import validate
from pangu_sigma.evaluation.evaluate import generator_of
from pangu_sigma.evaluation.generation import Write, before_stop
from pangu_sigma.evaluation.model import EvaluatedModel, on_one_process, open_model
from pangu_sigma.evaluation.windows import ScoreRequest

MOST_NEW_TOKENS = 64  # where a task does not say
_AT_ONCE = 64  # requests between two steps of the progress bar


class PanguSigmaLM(LM):
    """The harness's three kinds of requests, answered by a checkpoint.

    Args:
        model: open for as long as this is used.
        domain: number of the domain whose tag, words and experts are used.
        write: how tasks that generate are answered; None: by a `Generator` of the same checkpoint, when first asked.
    """

    def __init__(self, model: EvaluatedModel, domain: int = 0, write: Optional[Write] = None) -> None:
        super().__init__()
        self._model, self._domain, self._write = model, domain, write

    def loglikelihood(self, requests: List[Instance], disable_tqdm: bool = False) -> List[Tuple[float, bool]]:
        """Of each continuation after its context: log-probability in nats, and whether it is the greedy one."""
        asked = [
            self._request(context, continuation) for context, continuation in (request.args for request in requests)
        ]
        return [(-score.nats, score.greedy) for score in self._scores(asked, disable_tqdm)]

    def loglikelihood_rolling(self, requests: List[Instance], disable_tqdm: bool = False) -> List[float]:
        """Log-probability of each text in nats, in pieces of the model's length, the last with as much before it as
        fits.
        """
        asked = [self._request("", text) for (text,) in (request.args for request in requests)]
        return [-score.nats for score in self._scores(asked, disable_tqdm)]

    def generate_until(self, requests: List[Instance], disable_tqdm: bool = False) -> List[str]:
        """Greedy text after each context, up to the first of its stop texts. A context and an answer that do not fit
        together share the model's length: the answer gets what is left, at least half. Raises ValueError where a task
        asks for sampling.
        """
        if self._write is None:
            self._write = generator_of(self._model)
        texts: List[str] = []
        for request in tqdm(requests, disable=disable_tqdm or None, desc="generate_until"):
            context, options = request.args
            texts.append(self._generate(self._write, context, options))
        return texts

    def _generate(self, write: Write, context: str, options: Dict[str, Any]) -> str:
        if options.get("do_sample", False) and options.get("temperature", 1.0) > 0.0:
            raise ValueError(f"generation options {options}: found do_sample; this model answers greedily")
        until = options.get("until") or []
        ids, length = self._ids(context), self._model.scorer.length
        asked = int(options.get("max_gen_toks", MOST_NEW_TOKENS))
        most = min(asked, max(length - len(ids), length // 2))  # half is the context's
        room = length - most
        ids = ids if len(ids) <= room else ids[:1] + ids[len(ids) - room + 1 :]
        found = write([ids], [self._domain], most)[0]
        return before_stop(self._model.tokenizer.decode(found), [until] if isinstance(until, str) else until)

    def _ids(self, text: str) -> List[int]:
        return [self._model.tag(self._domain), *self._model.tokenizer.encode(text)]

    def _request(self, context: str, continuation: str) -> ScoreRequest:
        return ScoreRequest(self._ids(context), self._model.tokenizer.encode(continuation), self._domain)

    def _scores(self, asked: Sequence[ScoreRequest], disable_tqdm: bool) -> List[Any]:
        found: List[Any] = []
        for start in tqdm(range(0, len(asked), _AT_ONCE), disable=disable_tqdm or None, desc="loglikelihood"):
            found += self._model.scorer.score(asked[start : start + _AT_ONCE])
        return found


@contextmanager
def opened(
    source: Union[str, Path], domain: Optional[str] = None, overrides: Sequence[str] = ()
) -> Iterator[PanguSigmaLM]:
    """The model of a run's newest checkpoint, or of the checkpoint that is named.

    Args:
        source: a run folder, a checkpoint folder, or a configuration file.
        domain: name of the domain; None: the first.
        overrides: as `--set`.

    Raises InputError: as `pangu-sigma eval`.
    """
    settings = on_one_process(read_configuration(source, overrides, MODEL))
    validate(settings, 1)
    with open_model(settings, as_trained=False, prepared_rows=False) as model:
        yield PanguSigmaLM(model, 0 if domain is None else model.domain(domain, "domain"))
