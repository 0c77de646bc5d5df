"""`pangu-sigma eval`: opens the checkpoint, makes what is missing of each measurement, and shows what they come to."""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from locmoe_ops.errors import InputError
from locmoe_ops.routers.selection_bias import current_locality_strength
from pangu_sigma.config.derived import router_names
from pangu_sigma.config.schema import Config
from pangu_sigma.errors import RunDiverged
from pangu_sigma.evaluation.choice import ChoiceTask
from pangu_sigma.evaluation.generation import GenerationTask, Write, check_code_allowed
from pangu_sigma.evaluation.measurement import Measurement
from pangu_sigma.evaluation.model import EvaluatedModel, open_model
from pangu_sigma.evaluation.perplexity import TextPieces, ValidationRows
from pangu_sigma.evaluation.prompts import task_domain
from pangu_sigma.evaluation.ranks import validation_batches
from pangu_sigma.evaluation.results import Measured, RecordFile, as_json, table, write_results
from pangu_sigma.evaluation.tasks import Task, load_task
from pangu_sigma.evaluation.trace import TraceRequest, check_trace_request, write_trace
from pangu_sigma.model.capacity_rules import resolve_layout
from pangu_sigma.runtime.locks import FolderLock
from pangu_sigma.runtime.progress import progress_bar, waiting_for
from pangu_sigma.runtime.reporting import print_json


@dataclass(frozen=True)
class EvaluationRequest:
    """What to measure and how, as the options of `pangu-sigma eval` say."""

    validation: bool = False  # also where texts or tasks are given; without them always
    texts: Tuple[Tuple[str, Union[str, Path]], ...] = ()  # domain, path
    tasks: Tuple[Union[str, Path], ...] = ()
    task_data: Union[str, Path, None] = None
    domain: Optional[str] = None
    limit: Optional[int] = None
    as_trained: bool = False
    run_code: bool = False
    output: Union[str, Path, None] = None  # None: step_<N> in evaluation in train.output_dir
    fresh: bool = False
    json: bool = False
    trace: Optional[TraceRequest] = None


class EvaluationResults(NamedTuple):
    """What a model gave.

    Attributes:
        checkpoint, step: whose model it is.
        measured: what was measured of it, and how many tokens were dropped in doing so, in words (`how`).
        content, path: the same as `results.json` has it, and that file.
        trace: what the routing trace holds, in words; empty where none was asked for.
    """

    checkpoint: Path
    step: int
    measured: List[Measured]
    how: str
    content: Dict[str, Any]
    path: Path
    trace: str = ""


def evaluate(config: Config, request: EvaluationRequest) -> int:
    """Measures, prints and writes; returns 0.

    Args:
        config: as `on_one_process` gives it.
        request: what to measure and how.

    Raises InputError, RunDiverged: as `measure` and `check_finite`.
    """
    found = measure(config, request)
    if request.json:
        print_json(found.content)
    else:
        notes = [note for one in found.measured for note in one.notes]
        print(f"{found.checkpoint}: step {found.step}; {found.how}", "", table(found.measured), "", *notes, sep="\n")
        print(*filter(None, (f"written to {found.path}", found.trace)), sep="\n")
    check_finite(found)
    return 0


def measure(config: Config, request: EvaluationRequest) -> EvaluationResults:
    """Measures and writes `results.json`.

    Args:
        config, request: as of `evaluate`.

    Raises InputError: checkpoint, data, text, task or output folder are unusable, or do not fit together.
    """
    examples = None if request.task_data is None else str(request.task_data)
    tasks = [load_task(str(path), examples, request.limit) for path in request.tasks]  # the model takes its time
    _check_tasks(tasks, request)
    reads_rows = _reads_rows(request) or request.trace is not None
    if request.trace is not None:
        check_trace_request(config, request.trace)
    with (
        FolderLock(Path(config.data.path), "data.path", shared=True),
        open_model(config, request.as_trained, reads_rows, request.trace is not None) as model,
    ):
        without_rules = request.as_trained and model.config.moe.evaluation_rules == "none"
        name = f"step_{model.step}" + ("_as_trained" if request.as_trained else "")
        name += "_without_rules" if without_rules else ""
        folder = Path(request.output or Path(config.train.output_dir) / "evaluation" / name)
        measured = [_measure(one, model, folder, request) for one in _measurements(model, tasks, request)]
        content = as_json(
            {
                "checkpoint": str(model.checkpoint),
                "sha256": model.identity,
                "step": model.step,
                "router": router_names(config),
                "as_trained": request.as_trained,
            },
            measured,
        )
        path = write_results(folder, content)
        trace = "" if request.trace is None else write_trace(model, request.trace)
    how = "slots as configured" if request.as_trained and not without_rules else "no token dropped"
    return EvaluationResults(model.checkpoint, model.step, measured, how, content, path, trace)


def check_finite(found: EvaluationResults) -> None:
    """Raises RunDiverged where a model gave no finite number; the results have null there."""
    diverged = [one.name for one in found.measured if not all(math.isfinite(f.estimate.value) for f in one.figures)]
    if diverged:
        raise RunDiverged(
            f"{found.checkpoint} is of a run that diverged: {', '.join(diverged)} gave no finite number; try an "
            "earlier checkpoint"
        )


def _check_tasks(tasks: Sequence[Task], request: EvaluationRequest) -> None:
    names = [task.name for task in tasks]
    for task in tasks:
        if names.count(task.name) > 1:
            raise InputError(
                f"--task {task.path}: another task file has the name {task.name} too; expected different names"
            )
        check_code_allowed(task, request.run_code)
        if request.as_trained:
            raise InputError(
                f"--task {task.path}: with --as-trained, under which texts that share a batch would take each other's "
                "slots; expected one of the two"
            )
    if request.as_trained and request.texts:
        raise InputError("--text: with --as-trained, which is about validation rows; expected one of the two")


def _reads_rows(request: EvaluationRequest) -> bool:
    return request.validation or not (request.texts or request.tasks)


def _measurements(model: EvaluatedModel, tasks: Sequence[Task], request: EvaluationRequest) -> List[Measurement]:
    chosen: List[Measurement] = []
    if _reads_rows(request):
        chosen += _validation(model, request.as_trained)
    chosen += [TextPieces(model, domain, str(path)) for domain, path in request.texts]
    write = _GeneratedLater(model)
    for task in tasks:
        domain = task_domain(model, task, request.domain)
        chosen.append(
            ChoiceTask(model, task, domain)
            if task.config.kind == "choice"
            else GenerationTask(model, task, domain, write, request.run_code)
        )
    return chosen


def _validation(model: EvaluatedModel, as_trained: bool) -> List[Measurement]:
    config, data = model.config, model.data
    assert data is not None  # see _reads_rows
    layout = resolve_layout(config, model.runtime.topology)
    batches = validation_batches(config, data, layout, model.data_ranks, model.network)
    if not batches:
        raise InputError(f"train.eval_rows is {config.train.eval_rows}; eval expected at least one row")
    has_term = current_locality_strength(model.network) is not None and config.moe.evaluation_rules == "trained"
    kinds = (True, False) if as_trained and has_term else (True,)
    return [ValidationRows(model, batches, local_term) for local_term in kinds]


class _GeneratedLater:
    """Writes with a `Generator` of the same checkpoint, which is loaded when it is first asked."""

    def __init__(self, model: EvaluatedModel) -> None:
        self._model = model
        self._write: Optional[Write] = None

    def __call__(self, prompts: List[List[int]], domains: List[int], most: int) -> List[List[int]]:
        if self._write is None:
            self._write = generator_of(self._model)
        return self._write(prompts, domains, most)


def generator_of(model: EvaluatedModel) -> Write:
    """Greedy decoding with the checkpoint of `model`."""
    from pangu_sigma.inference.generator import Generator, SamplingSettings

    config = replace(model.config, checkpoint=replace(model.config.checkpoint, resume=str(model.checkpoint)))
    generator = Generator.load(config)
    return lambda prompts, domains, most: generator.generate(
        prompts, domains, SamplingSettings(max_new_tokens=most, temperature=0.0)
    )


def _measure(measurement: Measurement, model: EvaluatedModel, folder: Path, request: EvaluationRequest) -> Measured:
    header = {"checkpoint": model.identity, "as_trained": request.as_trained, **measurement.header()}
    if request.as_trained and model.config.moe.evaluation_rules == "none":
        header["evaluation_rules"] = "none"
    with RecordFile(folder / f"{measurement.name}.jsonl", header, request.fresh) as file:
        missing = [number for number in range(measurement.size) if number not in file.records]
        chunks = [missing[start : start + measurement.chunk] for start in range(0, len(missing), measurement.chunk)]
        for first in chunks[:1]:  # before there is a bar, which would stand still meanwhile
            with waiting_for(f"{measurement.name}, compiling", logging.DEBUG):
                file.add(first, measurement.measure(first))
        left = sum(map(len, chunks[1:]))
        with progress_bar(measurement.size, measurement.name, initial=measurement.size - left) as bar:
            for numbers in chunks[1:]:
                file.add(numbers, measurement.measure(numbers))
                bar.update(len(numbers))
        records = [file.records[number] for number in range(measurement.size)]
    return Measured(measurement.name, measurement.figures(records), measurement.notes(records))
