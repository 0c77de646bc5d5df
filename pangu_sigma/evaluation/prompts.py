"""From an example to what the model reads: solved examples, then the prompt."""

import hashlib
import json
import random
from dataclasses import asdict
from typing import Any, Dict, List, Optional

from locmoe_ops.errors import InputError
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
    """The same as ids, after the domain's tag, as documents of training begin."""
    return [model.tag(domain), *model.tokenizer.encode(prompt_text(task, number))]


def task_domain(model: EvaluatedModel, task: Task, asked: Optional[str]) -> int:
    """Number of the domain that `--domain`, the task or a model of one domain names. Raises InputError where none does."""
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
