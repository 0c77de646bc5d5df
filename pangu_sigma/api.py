"""What `from pangu_sigma import ...` gives, beside `Run` and `Generator`: the commands, for Python.

    from pangu_sigma import Generator, evaluate, load_config, prepare, train

    config = load_config("configs/quickstart.yaml", {"parallel.expert": 1, "train.output_dir": "runs/mine"})
    prepare(config)
    run = train(config)
    print(run.metrics[-1]["loss/task"], run.summary["valid/perplexity"], run.report())
    print(evaluate(run)["results"])
    print(Generator.load(run).generate_text(["The President"], ["en"])[0])

Errors of input are `InputError`, one line that says what, where and what was expected.
"""

import os
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Union

from pangu_sigma.checkpoint.locate import MODEL, StrPath, read_configuration
from pangu_sigma.config.ascend import has_devices
from pangu_sigma.config.load import Overrides
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.messages import set_log_level


def quieten() -> None:
    """Lets MindSpore say errors alone, as in all commands; of effect before it is imported."""
    set_log_level(has_devices())


def load_config(source: StrPath, overrides: Overrides = ()) -> Config:
    """Reads a configuration, strictly: an unknown key or a value of another type is an error.

    Args:
        source: a YAML file, or the folder of a run or a checkpoint, which means its own configuration.
        overrides: values by key, as in `{"train.steps": 20}`, or texts as of `--set`, as in `["train.steps=20"]`.

    Raises InputError: names the key, the value found and the one expected.
    """
    return read_configuration(source, overrides)


def prepare(config: Config) -> Path:
    """Texts to a tokenizer and rows of ids, as `pangu-sigma prepare` does, unless they are there already.

    Args:
        config: whose `data.prepare` says from what.

    Returns:
        The folder of prepared data, `data.path`.

    Raises:
        InputError: a source, the tokenizer or a setting is unusable, or `data.path` holds something else.
        OutputNotWritten: the disk is full.
    """
    from pangu_sigma.config.check_run import check_paths
    from pangu_sigma.data.prepare import prepare as prepare_data

    check_paths(config)
    prepare_data(config)
    return Path(config.data.path)


def evaluate(
    source: Union[Config, StrPath],
    texts: Optional[Mapping[str, StrPath]] = None,
    tasks: Sequence[StrPath] = (),
    *,
    validation: bool = False,
    as_trained: bool = False,
    domain: Optional[str] = None,
    limit: Optional[int] = None,
    task_data: Optional[StrPath] = None,
    run_code: bool = False,
    output: Optional[StrPath] = None,
    fresh: bool = False,
) -> Dict[str, Any]:
    """Measures a run's newest checkpoint, or the one that is named, as `pangu-sigma eval` does, on this process.

    Args:
        source: a run or its folder, a checkpoint folder, or a configuration.
        texts: files to give perplexity and bits per byte of, by the domain that they are read as.
        tasks: task files, as in configs/tasks.
        validation: measure the validation rows, too; without texts and tasks always.
        as_trained: validation with the slots, homes and locality terms of training; else no token is dropped.
        domain: the model's domain for all tasks; None: as each task says.
        limit: first examples of each task only.
        task_data: folder of the tasks' examples; None: that of each task file.
        run_code: let tasks run the programs that the model writes, with your rights.
        output: folder of results; None: step_<N> in `evaluation` in the run's folder.
        fresh: make all records anew; else continue after those that are there.

    Returns:
        What `results.json` holds: the checkpoint, and results.<measurement>.<domain>.<metric> with value, low, high
        and the number of examples.

    Raises:
        InputError: checkpoint, data, text or task are unusable, or do not fit together.
        RunDiverged: the model gives no finite number; the results are written.
    """
    from pangu_sigma.config.validate import validate
    from pangu_sigma.evaluation.evaluate import EvaluationRequest, check_finite, measure
    from pangu_sigma.evaluation.model import on_one_process

    config = on_one_process(source if isinstance(source, Config) else read_configuration(source, use=MODEL))
    validate(config, 1)
    request = EvaluationRequest(
        validation=validation,
        texts=tuple((name, os.fspath(path)) for name, path in (texts or {}).items()),
        tasks=tuple(os.fspath(task) for task in tasks),
        task_data=None if task_data is None else os.fspath(task_data),
        domain=domain,
        limit=limit,
        as_trained=as_trained,
        run_code=run_code,
        output=None if output is None else os.fspath(output),
        fresh=fresh,
    )
    results = measure(config, request)
    check_finite(results)
    return results.content
