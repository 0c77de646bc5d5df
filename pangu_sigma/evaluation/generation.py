"""Generation tasks: what the model writes after the prompt, greedily, compared with the answers or run.

Record of an example: completion (text up to the first stop text); exact_match, f1, passes (those of the task's
metrics); lost (ids of the prompt that found no room).

Exact match and F1 are over units of text. A unit is a Chinese character (or kana), or a word or number of other
scripts. Case, the width of letters, punctuation and white space play no part. F1 is SQuAD's (arXiv 1606.05250) on these
units, without dropping English articles; the official script of CMRC 2018 has another one, by the longest common piece
of text.
"""

import re
import unicodedata
from collections import Counter
from typing import Any, Callable, Dict, List, Protocol, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.evaluation import intervals
from pangu_sigma.evaluation.measurement import MeasuredFigure, Record
from pangu_sigma.evaluation.model import EvaluatedModel
from pangu_sigma.evaluation.prompts import lost_note, prompt_ids, task_header
from pangu_sigma.evaluation.run_code import ends_well
from pangu_sigma.evaluation.tasks import Task, Template

# Writes at most so many tokens after each prompt (prompts, domains, tokens): ids without the prompt's.
Write = Callable[[List[List[int]], List[int], int], List[List[int]]]


class Generates(Protocol):
    """What `pangu_sigma.inference.generator.Generator` offers of use here."""

    def generate(self, prompt_ids: List[List[int]], domains: List[int], settings: Any) -> List[List[int]]:
        """Ids after each of `prompt_ids`, in the experts of its one of `domains`, by `SamplingSettings` `settings`."""
        ...


_CHARACTER = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_UNIT = re.compile(rf"[{_CHARACTER}]|[^\W_{_CHARACTER}]+")


def units(text: str) -> List[str]:
    return _UNIT.findall(unicodedata.normalize("NFKC", text).casefold())


def exact_match(found: str, answers: Sequence[str]) -> bool:
    """Whether the units are those of one of the answers, in order."""
    return any(units(found) == units(answer) for answer in answers)


def f1(found: str, answers: Sequence[str]) -> float:
    """The best over the answers of 2PR / (P + R), where units count as often as they occur. Two texts without units
    agree.
    """
    own, best = units(found), 0.0
    for answer in map(units, answers):
        if not own or not answer:
            best = max(best, float(own == answer))
        else:
            common = sum((Counter(own) & Counter(answer)).values())
            best = max(best, 2.0 * common / (len(own) + len(answer)))
    return best


class GenerationTask:
    """A `Measurement` of a task of kind generate.

    Args:
        model, task: what is asked of what.
        domain: number of the domain whose tag, words and experts are used.
        write: how the model answers prompts.
        run_code: programs may be run.

    Raises InputError: a program would have to be run and may not, or the answer has no room.
    """

    chunk = 16

    def __init__(self, model: EvaluatedModel, task: Task, domain: int, write: Write, run_code: bool = False) -> None:
        self.name = f"task-{task.name}"
        self._model, self._task, self._domain, self._write = model, task, domain, write
        check_code_allowed(task, run_code)
        limit = task.config.max_new_tokens
        if limit >= model.scorer.length:
            raise InputError(
                f"{task.path}: max_new_tokens is {limit}, expected less than model.sequence_length "
                f"({model.scorer.length})"
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
        records, metrics = [], self._task.metrics
        for number, ids, before, after in zip(numbers, written, whole, prompts):
            example, completion = self._task.examples[number], self._text(ids)
            found: Record = {"completion": completion}
            if "exact_match" in metrics:
                found["exact_match"] = exact_match(completion, example.answers)
            if "f1" in metrics:
                found["f1"] = f1(completion, example.answers)
            if "passes" in metrics:
                program = Template(self._task.config.program or "", "program")
                values = {**(example.values or {}), "completion": completion}
                found["passes"] = ends_well(program.render(values, example.where))
            records.append({**found, "lost": len(before) - len(after)})
        return records

    def figures(self, records: Sequence[Record]) -> List[MeasuredFigure]:
        domain = self._model.domains[self._domain]
        found: List[MeasuredFigure] = []
        for metric in self._task.metrics:
            values = [record[metric] for record in records]
            estimate = intervals.mean(values) if metric == "f1" else intervals.share(values)
            found.append(MeasuredFigure(domain, metric, len(values), estimate))
        return found

    def notes(self, records: Sequence[Record]) -> List[str]:
        return lost_note(self.name, records, self._model.scorer.length)

    def _text(self, ids: Sequence[int]) -> str:
        end = self._model.tokenizer.end_of_text
        ids = list(ids)
        return before_stop(
            self._model.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids), self._task.config.stop
        )


def check_code_allowed(task: Task, run_code: bool) -> None:
    """Raises InputError where the task runs code and nobody said that it may."""
    if "passes" in task.metrics and not run_code:
        raise InputError(
            f"{task.path}: the metric passes runs programs that the model writes, with your rights; expected "
            "--run-code, or metrics: [exact_match] and no program"
        )


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first place where one of `stop` begins."""
    ends = [text.index(word) for word in stop if word and word in text]
    return text[: min(ends)] if ends else text
