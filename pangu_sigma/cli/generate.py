"""`pangu-sigma generate`: a checkpoint continues texts."""

import argparse
from typing import Any, Callable, Tuple

from pangu_sigma.checkpoint.locate import MODEL
from pangu_sigma.cli.arguments import add_command, positive, run_by_ranks
from pangu_sigma.config.schema import Config
from pangu_sigma.inference.sampling import SamplingSettings


def add_generate(commands: Any) -> None:
    """Adds the command to the program's parser."""
    parser = add_command(commands, "generate", "let a run's newest checkpoint continue texts", _generate, MODEL)
    run_by_ranks(parser)
    what = parser.add_argument_group("prompts")
    what.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="beginning of a document; may be repeated"
    )
    what.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="a prompt each line (blank ones are passed over); in a .jsonl or .ndjson file objects with `prompt` and, "
        "if it differs from --domain, `domain`",
    )
    what.add_argument(
        "--interactive", action="store_true", help="ask for prompts, one a line; an empty line or end of input ends it"
    )
    what.add_argument(
        "--domain", metavar="D", help="name or number of the texts' domain (default: the model's, if it has one)"
    )
    add_sampling(parser)
    how = parser.add_argument_group("model")
    how.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="prompts decoded together at most (default 8)"
    )
    how.add_argument(
        "--local-term",
        action="store_true",
        help="let routers prefer experts near the home of the domain, as trained (moe.router.locality_bias)",
    )
    how.add_argument(
        "--tokenizer", metavar="FILE", help="the tokenizer (default: the checkpoint's own, or data.path's)"
    )
    parser.add_argument("--json", action="store_true", help="print an object a prompt: prompt, domain, text, tokens")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The options that make `SamplingSettings`, which checks them and has the defaults."""
    group = parser.add_argument_group("sampling")
    default = SamplingSettings()
    options: Tuple[Tuple[str, Callable[[str], Any], str, str], ...] = (
        ("max_new_tokens", positive, "N", "tokens a text at most"),
        ("temperature", float, "T", "logits / T; 0: always the likeliest token"),
        ("top_k", int, "K", "only the K likeliest tokens; 0: all"),
        ("top_p", float, "P", "only the likeliest tokens that make up P; 1: all"),
        ("repetition_penalty", float, "R", "tokens in prompt or output; 1: none"),
        ("frequency_penalty", float, "F", "each time a token is in the output"),
        ("presence_penalty", float, "F", "once a token is in the output"),
        ("seed", int, "N", "of the random numbers"),
    )
    for name, kind, metavar, text in options:
        value = getattr(default, name)
        option, text = "--" + name.replace("_", "-"), f"{text} (default {value:g})"
        group.add_argument(option, type=kind, default=value, metavar=metavar, help=text)
    group.add_argument(
        "--ignore-end", dest="stop_at_end", action="store_false", help="continue with another document at end-of-text"
    )


def _generate(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.inference.prompts import generate

    return generate(config, options)
