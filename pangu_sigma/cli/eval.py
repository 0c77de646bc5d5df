"""`pangu-sigma eval`: what a checkpoint's model knows."""

import argparse
from typing import Any, Tuple

from locmoe_ops.errors import InputError
from locmoe_ops.routing_trace import MOST_TOKENS, ROWS
from pangu_sigma.checkpoint.locate import MODEL
from pangu_sigma.cli.arguments import add_command, positive
from pangu_sigma.config.schema import Config


def add_eval(commands: Any) -> None:
    """Adds the command to the program's parser."""
    command = add_command(
        commands,
        "eval",
        "perplexity, multiple choice and generation tasks of a run's newest checkpoint, in one process",
        _eval,
        MODEL,
    )
    command.add_argument(
        "--validation",
        action="store_true",
        help="perplexity on the validation rows (default, if no text or task is given)",
    )
    command.add_argument(
        "--text",
        type=_text,
        action="append",
        default=[],
        metavar="DOMAIN=PATH",
        help="perplexity and bits per byte of a text file, folder or JSONL; may be repeated",
    )
    command.add_argument(
        "--task", action="append", default=[], metavar="FILE", help="task file, as in configs/tasks; may be repeated"
    )
    command.add_argument(
        "--task-data", metavar="DIR", help="folder of the tasks' examples (default: that of each task file)"
    )
    command.add_argument(
        "--domain", metavar="NAME", help="the model's domain for all tasks (default: as each task says)"
    )
    command.add_argument("--limit", type=positive, metavar="N", help="first N examples of each task only")
    command.add_argument(
        "--as-trained",
        action="store_true",
        help="validation with the slots, homes and local terms of training (default: no token is dropped)",
    )
    command.add_argument(
        "--run-code", action="store_true", help="let tasks run the programs that the model writes, with your rights"
    )
    command.add_argument(
        "--output", metavar="DIR", help="folder of results (default: step_<N> in evaluation in train.output_dir)"
    )
    command.add_argument(
        "--fresh", action="store_true", help="make all records anew (default: continue after those that are there)"
    )
    command.add_argument(
        "--trace",
        metavar="FILE",
        help="also write which experts the tokens of prepared rows go to, with which weights, to this safetensors file",
    )
    command.add_argument(
        "--trace-rows", choices=ROWS, help="the rows to trace (default: validation; training: of the first steps)"
    )
    command.add_argument(
        "--trace-tokens", type=positive, metavar="N", help=f"tokens to trace at most (default: {MOST_TOKENS:,})"
    )
    command.add_argument("--json", action="store_true", help="print the results as JSON")


def _text(text: str) -> Tuple[str, str]:
    domain, equals, path = text.partition("=")
    if not (domain and equals and path):
        raise ValueError
    return domain, path


_text.__name__ = "DOMAIN=PATH"


def _eval(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.config.validate import validate
    from pangu_sigma.evaluation.evaluate import EvaluationRequest, evaluate
    from pangu_sigma.evaluation.model import on_one_process
    from pangu_sigma.evaluation.trace import TraceRequest

    if options.trace is None and (options.trace_rows or options.trace_tokens):
        raise InputError("--trace-rows and --trace-tokens say what --trace FILE is to hold; expected that option too")
    config = on_one_process(config)
    validate(config, 1)
    return evaluate(
        config,
        EvaluationRequest(
            validation=options.validation,
            texts=tuple(options.text),
            tasks=tuple(options.task),
            task_data=options.task_data,
            domain=options.domain,
            limit=options.limit,
            as_trained=options.as_trained,
            run_code=options.run_code,
            output=options.output,
            fresh=options.fresh,
            json=options.json,
            trace=None
            if options.trace is None
            else TraceRequest(options.trace, options.trace_rows or ROWS[0], options.trace_tokens or MOST_TOKENS),
        ),
    )
