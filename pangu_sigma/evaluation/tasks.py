"""Task files: which examples, how they become prompts, how answers are scored. docs/evaluation.md describes them."""

from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Dict, List, Mapping, Optional, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import section_from_dict, to_dict
from pangu_sigma.config.schema import key
from pangu_sigma.config.strict_yaml import parse_yaml, read_text
from pangu_sigma.data.jsonl import check_text
from pangu_sigma.evaluation.readers import READERS

CHOICE_METRICS = ("accuracy", "accuracy_per_byte", "accuracy_per_token")
GENERATION_METRICS = ("exact_match", "f1", "passes")


@dataclass(frozen=True)
class TaskConfig:
    """The keys of a task file."""

    kind: str = key(
        "choice",
        "choice: the likeliest of given answers; generate: what the model writes",
        choices=("choice", "generate"),
    )
    data: str = key("", "file of examples; relative to --task-data, or else to the task file's folder")
    reader: str = key("jsonl", "how to read it", choices=tuple(READERS))
    prompt: str = key("", "template of what the model reads; {field} is an example's value")
    answer: str = key(
        "answer",
        "field of the right answer: number of the choice from 0, its text, or a label; of kind generate: text, or "
        "a list of texts",
    )
    choices: Tuple[str, ...] = key((), "kind choice: templates of the choices, the same for every example")
    choices_field: Optional[str] = key(
        None, "kind choice, in place of choices: field that holds an example's list of them"
    )
    choice: str = key("{choice}", "with choices_field: template of what is scored for one of them")
    labels: Tuple[str, ...] = key((), "with choices: what the answer field says for each of them")
    metrics: Tuple[str, ...] = key((), f"of {', '.join(CHOICE_METRICS + GENERATION_METRICS)}; empty: all that fit")
    shots: int = key(0, "solved examples before each prompt", minimum=0, maximum=64)
    shots_data: Optional[str] = key(None, "file that they are drawn from; null: the others of data")
    seed: int = key(1, "of the draw, which is the same for an example in every run", minimum=0)
    separator: str = key("\n\n", "text between solved examples, and before the prompt")
    domain: Optional[str] = key(None, "domain of the model; --domain goes before it")
    max_new_tokens: int = key(32, "kind generate: tokens at most", minimum=1)
    stop: Tuple[str, ...] = key((), "kind generate: the answer ends before the first of these texts")
    program: Optional[str] = key(
        None, "kind generate, metric passes: template of a Python program that ends well if {completion} is right"
    )


@dataclass(frozen=True)
class Example:
    """One example of a task, its templates filled in.

    Attributes:
        where: file, and line or number, for messages.
        prompt: what the model reads.
        solution: what a solved example shows.
        choices, answer: of kind choice: the texts, and the number of the right one.
        answers, values: of kind generate: the right texts, and the fields for the program.
    """

    where: str
    prompt: str
    solution: str
    choices: Tuple[str, ...] = ()
    answer: int = -1
    answers: Tuple[str, ...] = ()
    values: Optional[Dict[str, Any]] = None


@dataclass(frozen=True)
class Task:
    """A task file, read.

    Attributes:
        name: stem of its file.
        path, config: the file, and its keys.
        examples: those that are asked.
        pool: what solved examples are drawn from: those of `shots_data`, or all of `data`, which begin with `examples`.
    """

    name: str
    path: str
    config: TaskConfig
    examples: List[Example]
    pool: List[Example]

    @property
    def metrics(self) -> Tuple[str, ...]:
        if self.config.metrics:
            return self.config.metrics
        if self.config.kind == "choice":
            return CHOICE_METRICS
        return ("passes",) if self.config.program is not None else ("exact_match", "f1")


def load_task(path: str, data_folder: Optional[str] = None, limit: Optional[int] = None) -> Task:
    """Reads a task file and its examples.

    Args:
        path: the task file.
        data_folder: where the files of examples are; None: in the task file's folder.
        limit: how many examples are asked; None: all. Solved ones are drawn from all of them.

    Raises InputError: a key is unknown, of the wrong type, missing or of no use; an example does not fit.
    """
    try:
        config: TaskConfig = section_from_dict(TaskConfig, parse_yaml(read_text(path), path), "")
        _check(config)
        make = _Maker(config)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(path) else f"{path}: {error}") from None
    folder = Path(path).parent if data_folder is None else Path(data_folder)
    examples = [make.example(values, where) for values, where in READERS[config.reader](folder / config.data)]
    pool = examples
    if config.shots_data is not None:
        pool = [make.example(values, where) for values, where in READERS[config.reader](folder / config.shots_data)]
    available = len(pool) - (config.shots_data is None)
    if config.shots > available:
        raise InputError(
            f"{path}: shots is {config.shots}, but there are {available} other examples; expected at most as many"
        )
    return Task(Path(path).stem, path, config, examples[:limit], pool)


def settings(task: Task) -> Dict[str, Any]:
    """The keys that records depend on, with their values. Files and domain are noted by themselves; metrics of choices
    follow from records.
    """
    left_out = ("data", "shots_data", "domain", *(("metrics",) if task.config.kind == "choice" else ()))
    return {name: value for name, value in to_dict(task.config).items() if name not in left_out}


def _check(config: TaskConfig) -> None:
    for name in ("data", "prompt"):
        if not getattr(config, name):
            raise InputError(f"{name}: missing, expected {'a file of examples' if name == 'data' else 'a template'}")
    choice = config.kind == "choice"
    allowed = CHOICE_METRICS if choice else GENERATION_METRICS
    for metric in config.metrics:
        if metric not in allowed:
            raise InputError(f"metrics: found {metric} with kind {config.kind}, expected some of {', '.join(allowed)}")
    unused = ("max_new_tokens", "stop", "program") if choice else ("choices", "choices_field", "choice", "labels")
    _require_default(config, unused, f"kind {config.kind}")
    if choice:
        if bool(config.choices) == (config.choices_field is not None):
            raise InputError("choices and choices_field: expected one of the two")
        if config.choices and len(config.choices) < 2:
            raise InputError(f"choices: found {len(config.choices)}, expected at least 2")
        if config.choices:
            _require_default(config, ("choice",), "choices")
        elif config.labels:
            raise InputError("labels: given with choices_field, expected none")
        if config.labels and len(config.labels) != len(config.choices):
            raise InputError(f"labels: found {len(config.labels)} for {len(config.choices)} choices, expected as many")
    elif config.metrics and ("passes" in config.metrics) != (config.program is not None):
        raise InputError("program and the metric passes: found one without the other, expected both or neither")
    if not config.shots:
        _require_default(config, ("shots_data", "seed", "separator"), "shots 0")


def _require_default(config: TaskConfig, names: Tuple[str, ...], reason: str) -> None:
    for name in names:
        if getattr(config, name) != getattr(TaskConfig(), name):
            raise InputError(f"{name}: given with {reason}, which does not use it; expected to be left out")


class Template:
    """A text whose fields, `{field}`, are filled in with an example's values. `{{` and `}}` stand for braces.

    Args:
        text: the template.
        key: of the task file, for messages.

    Raises InputError: braces that do not match, or more than a name in them.
    """

    def __init__(self, text: str, key: str) -> None:
        self._key = key
        self._parts: List[Tuple[str, str]] = []  # text, then a field's name or nothing
        try:
            for before, name, form, conversion in Formatter().parse(text):
                if name is not None and (form or conversion or not name.isidentifier()):
                    raise ValueError(f"{{{name}}} holds more than a field's name")
                self._parts.append((before, name or ""))
        except ValueError as error:
            raise InputError(
                f"{key}: {error}; expected text with fields as in {{question}}, and {{{{ or }}}} for braces"
            ) from None

    @property
    def fields(self) -> List[str]:
        return [name for _, name in self._parts if name]

    def render(self, values: Mapping[str, Any], where: str) -> str:
        """Raises InputError, which begins with `where`: a field is missing, is neither text nor a number, or holds half
        of a surrogate pair.
        """
        text = "".join(before + (_text(values, name, where, self._key) if name else "") for before, name in self._parts)
        return check_text(text, f"{where}: {self._key}")


def _text(values: Mapping[str, Any], name: str, where: str, key: str) -> str:
    if name not in values:
        raise InputError(
            f"{where}: no field {name}, which {key} asks for; found {', '.join(map(str, values)) or 'none'}"
        )
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(
            f"{where}: field {name}, which {key} asks for, is a {type(value).__name__}; expected text or a number"
        )
    return str(value)


class _Maker:
    """Makes examples of what a reader yields."""

    def __init__(self, config: TaskConfig) -> None:
        self._config = config
        self._prompt = Template(config.prompt, "prompt")
        self._choices = [Template(text, f"choices[{number}]") for number, text in enumerate(config.choices)]
        self._choice = Template(config.choice, "choice")
        self._program = None if config.program is None else Template(config.program, "program")

    def example(self, values: Dict[str, Any], where: str) -> Example:
        prompt = self._prompt.render(values, where)
        if self._config.answer not in values:
            raise InputError(
                f"{where}: no field {self._config.answer}, which answer names; found "
                f"{', '.join(map(str, values)) or 'none'}"
            )
        answer = values[self._config.answer]
        if not prompt:
            raise InputError(f"{where}: the prompt is empty; expected some text")
        if self._config.kind == "generate":
            answers = answer if isinstance(answer, list) else [answer]
            if not answers or not all(isinstance(text, str) for text in answers):
                raise InputError(
                    f"{where}: field {self._config.answer} is {_short(answer)}; expected text, or a list of texts"
                )
            check_text("".join(answers), f"{where}: field {self._config.answer}")
            if self._program is not None:
                self._program.render({**values, "completion": ""}, where)  # told before anything is written
            return Example(where, prompt, answers[0], answers=tuple(answers), values=values)
        raw, choices = self._of_choices(values, where)
        number = self._number(answer, raw, choices, where)
        return Example(where, prompt, choices[number], tuple(choices), number)

    def _of_choices(self, values: Dict[str, Any], where: str) -> Tuple[List[str], List[str]]:
        """What the answer may name, and the texts that are scored."""
        name = self._config.choices_field
        if name is None:
            texts = [template.render(values, where) for template in self._choices]
            raw = list(self._config.labels) or texts
        else:
            raw = values.get(name, [])
            if not isinstance(raw, list) or len(raw) < 2 or not all(isinstance(text, str) for text in raw):
                raise InputError(f"{where}: field {name} is {_short(raw)}; expected a list of at least two texts")
            texts = [self._choice.render({**values, "choice": text}, where) for text in raw]
        if not all(texts):
            raise InputError(f"{where}: choice {texts.index('')} is empty; expected some text")
        return raw, texts

    def _number(self, answer: Any, raw: List[str], choices: List[str], where: str) -> int:
        if isinstance(answer, int) and not isinstance(answer, bool) and not self._config.labels:
            if 0 <= answer < len(choices):
                return answer
        elif str(answer) in raw:
            return raw.index(str(answer))
        expected = (
            ", ".join(map(_short, raw)) if self._config.labels else f"0 to {len(choices) - 1}, or the text of a choice"
        )
        raise InputError(f"{where}: field {self._config.answer} is {_short(answer)}; expected {expected}")


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
