"""Generation tasks: what the model writes after the prompt, greedily, compared with the answers or run.

Record of an example: completion (text up to the first stop text); exact_match, f1, passes (those of the task's
metrics); lost (ids of the prompt that found no room).
"""

from typing import Any, Callable, Dict, List, Protocol, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.evaluation import intervals
from pangu_sigma.evaluation.agreement import exact_match, f1
from pangu_sigma.evaluation.choice import lost_note
from pangu_sigma.evaluation.measurement import MeasuredFigure, Record
from pangu_sigma.evaluation.model import EvaluatedModel
from pangu_sigma.evaluation.prompts import prompt_ids, task_header
from pangu_sigma.evaluation.run_code import ends_well
from pangu_sigma.evaluation.tasks import Example, Task
from pangu_sigma.evaluation.templates import Template

# Writes at most so many tokens after each prompt (prompts, domains, tokens): ids without the prompt's.
Write = Callable[[List[List[int]], List[int], int], List[List[int]]]


class Generates(Protocol):
    """What `pangu_sigma.inference.generator.Generator` offers of use here."""

    def generate(self, prompt_ids: List[List[int]], domains: List[int], settings: Any) -> List[List[int]]: ...


class GenerationTask:
    """A `Measurement` of a task of kind generate.

    Args: run_code: programs may be run. Raises InputError where one would have to be and may not.
    """

    chunk = 16

    def __init__(self, model: EvaluatedModel, task: Task, domain: int, write: Write, run_code: bool = False) -> None:
        self.name = f"task-{task.name}"
        self._model, self._task, self._domain, self._write = model, task, domain, write
        check_code_allowed(task, run_code)
        limit = task.config.max_new_tokens
        if limit >= model.scorer.length:
            raise InputError(
                f"{task.path}: max_new_tokens is {limit}, expected less than model.sequence_length ({model.scorer.length})"
            )
        self._room = model.scorer.length - limit

    @property
    def size(self) -> int:
        return len(self._task.examples)

    def header(self) -> Dict[str, Any]:
        return task_header(self._task, self._domain)

    def measure(self, numbers: Sequence[int]) -> List[Record]:
        whole = [prompt_ids(self._model, self._task, number, self._domain) for number in numbers]
        prompts = [ids if len(ids) <= self._room else ids[:1] + ids[len(ids) - self._room + 1 :] for ids in whole]
        written = self._write(prompts, [self._domain] * len(prompts), self._task.config.max_new_tokens)
        return [
            {**self._judge(self._task.examples[number], self._text(ids)), "lost": len(before) - len(after)}
            for number, ids, before, after in zip(numbers, written, whole, prompts)
        ]

    def figures(self, records: Sequence[Record]) -> List[MeasuredFigure]:
        domain = self._model.domains[self._domain]
        found: List[MeasuredFigure] = []
        for metric in self._task.metrics:
            values = [record[metric] for record in records]
            found.append(
                MeasuredFigure(
                    domain, metric, len(values), intervals.mean(values) if metric == "f1" else intervals.share(values)
                )
            )
        return found

    def notes(self, records: Sequence[Record]) -> List[str]:
        return lost_note(self.name, records, self._model.scorer.length)

    def _text(self, ids: Sequence[int]) -> str:
        end = self._model.tokenizer.end_of_text
        ids = list(ids)
        return before_stop(
            self._model.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids), self._task.config.stop
        )

    def _judge(self, example: Example, completion: str) -> Record:
        found: Record = {"completion": completion}
        if "exact_match" in self._task.metrics:
            found["exact_match"] = exact_match(completion, example.answers)
        if "f1" in self._task.metrics:
            found["f1"] = f1(completion, example.answers)
        if "passes" in self._task.metrics:
            values = {**(example.values or {}), "completion": completion}
            found["passes"] = ends_well(
                Template(self._task.config.program or "", "program").render(values, example.where)
            )
        return found


def check_code_allowed(task: Task, run_code: bool) -> None:
    """Raises InputError where the task runs code and nobody said that it may."""
    if "passes" in task.metrics and not run_code:
        raise InputError(
            f"{task.path}: the metric passes runs programs that the model writes, with your rights; expected --run-code, or "
            "metrics: [exact_match] and no program"
        )


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first place where one of `stop` begins."""
    ends = [text.index(word) for word in stop if word and word in text]
    return text[: min(ends)] if ends else text
