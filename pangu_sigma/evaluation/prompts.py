"""From an example to what the model reads: solved examples, then the prompt."""

import hashlib
import json
import random
from dataclasses import asdict
from typing import Any, Dict, List, Optional, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.evaluation.measurement import Record
from pangu_sigma.evaluation.model import EvaluatedModel
from pangu_sigma.evaluation.tasks import Task, settings


def prompt_text(task: Task, number: int) -> str:
    """The prompt of example `number`, after solved examples that its number and the task's seed draw; never the example
    itself.
    """
    own = task.config.shots_data is None  # the example is in the pool, and is passed over
    drawn = random.Random(f"{task.config.seed}/{number}").sample(range(len(task.pool) - own), task.config.shots)
    shots = [task.pool[place + (own and place >= number)] for place in drawn]
    return task.config.separator.join([*(shot.prompt + shot.solution for shot in shots), task.examples[number].prompt])


def prompt_ids(model: EvaluatedModel, task: Task, number: int, domain: int) -> List[int]:
    """What a model reads, as ids: the domain's tag, as documents of training begin, then `prompt_text`.

    Args:
        model: whose tokenizer is used.
        task, number: the example.
        domain: number of the domain.
    """
    return [model.tag(domain), *model.tokenizer.encode(prompt_text(task, number))]


def task_domain(model: EvaluatedModel, task: Task, asked: Optional[str]) -> int:
    """Number of the domain that `--domain`, the task, or a model of one domain names.

    Args:
        model, task: what is asked of what.
        asked: the value of `--domain`; None: it was not given.

    Raises InputError: none of them names one.
    """
    if asked is not None:
        return model.domain(asked, "--domain")
    if task.config.domain is not None:
        return model.domain(task.config.domain, f"{task.path}: domain")
    if len(model.domains) > 1:
        raise InputError(
            f"{task.path}: names no domain; expected --domain, or a key domain: one of {', '.join(model.domains)}"
        )
    return 0


def task_header(task: Task, domain: int) -> Dict[str, Any]:
    """What records of a task depend on: settings, domain, and all examples, solved ones included, wherever their files
    lie.
    """
    digest = hashlib.sha256()
    for example in task.pool if task.config.shots_data is None else [*task.pool, *task.examples]:
        digest.update(json.dumps({**asdict(example), "where": None}, sort_keys=True).encode())
    return {"task": settings(task), "domain": domain, "examples": digest.hexdigest()}


def lost_note(name: str, records: Sequence[Record], length: int) -> List[str]:
    """Says of the measurement `name` how many of the prompts of `records` were cut to fit into `length` ids, if any."""
    count = sum(record["lost"] > 0 for record in records)
    if not count:
        return []
    return [f"{name}: {count} of {len(records)} prompts lost their beginning to fit into {length} tokens"]
