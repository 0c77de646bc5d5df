"""Multiple choice by likelihood: which of the given answers the model finds likeliest after the prompt.

A choice is encoded by itself and scored after the prompt's ids, so that the prompt is read as it would be before
generating. Record of an example: answer (number of the right choice); nats, tokens, bytes (of each choice); lost (ids
of the prompt that found no room).
"""

import math
from typing import Any, Callable, Dict, List, Sequence

from pangu_sigma.evaluation import intervals
from pangu_sigma.evaluation.measurement import MeasuredFigure, Record, finite_or_nan
from pangu_sigma.evaluation.model import EvaluatedModel
from pangu_sigma.evaluation.prompts import lost_note, prompt_ids, task_header
from pangu_sigma.evaluation.tasks import Task
from pangu_sigma.evaluation.windows import ScoreRequest

# The smallest wins, of equal ones the first.
COSTS: Dict[str, Callable[[Record], List[float]]] = {
    "accuracy": lambda record: record["nats"],
    "accuracy_per_byte": lambda record: [n / b for n, b in zip(record["nats"], record["bytes"])],
    "accuracy_per_token": lambda record: [n / t for n, t in zip(record["nats"], record["tokens"])],
}


def picked(record: Record, metric: str) -> int:
    """Number of the choice that the metric takes for the model's."""
    costs = COSTS[metric](record)
    return costs.index(min(costs))


class ChoiceTask:
    """A `Measurement` of a task of kind choice.

    Args:
        model, task: what is asked of what.
        domain: number of the domain whose tag, words and experts are used.
    """

    chunk = 32

    def __init__(self, model: EvaluatedModel, task: Task, domain: int) -> None:
        self.name = f"task-{task.name}"
        self._model, self._task, self._domain = model, task, domain

    @property
    def size(self) -> int:
        return len(self._task.examples)

    def header(self) -> Dict[str, Any]:
        return task_header(self._task, self._domain)

    def measure(self, numbers: Sequence[int]) -> List[Record]:
        requests: List[ScoreRequest] = []
        for number in numbers:
            prompt = prompt_ids(self._model, self._task, number, self._domain)
            requests += [
                ScoreRequest(prompt, self._model.tokenizer.encode(choice), self._domain)
                for choice in self._task.examples[number].choices
            ]
        scores = iter(self._model.scorer.score(requests))
        records: List[Record] = []
        for number in numbers:
            example = self._task.examples[number]
            own = [next(scores) for _ in example.choices]
            records.append(
                {
                    "answer": example.answer,
                    "nats": [score.nats for score in own],
                    "tokens": [score.tokens for score in own],
                    "bytes": [len(choice.encode("utf-8")) for choice in example.choices],
                    "lost": max(score.lost for score in own),
                }
            )
        return records

    def figures(self, records: Sequence[Record]) -> List[MeasuredFigure]:
        domain = self._model.domains[self._domain]
        if any(math.isnan(finite_or_nan(nats)) for record in records for nats in record["nats"]):
            return [
                MeasuredFigure(domain, metric, len(records), intervals.Estimate(math.nan, None, None))
                for metric in self._task.metrics
            ]
        return [
            MeasuredFigure(
                domain,
                metric,
                len(records),
                intervals.share([picked(record, metric) == record["answer"] for record in records]),
            )
            for metric in self._task.metrics
        ]

    def notes(self, records: Sequence[Record]) -> List[str]:
        return lost_note(self.name, records, self._model.scorer.length)
