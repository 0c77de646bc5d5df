"""`pangu-sigma generate`: a checkpoint continues texts."""

import argparse
from typing import Any

from pangu_sigma.checkpoint.locate import MODEL
from pangu_sigma.cli.arguments import add_command, positive, run_by_ranks
from pangu_sigma.config.schema import Config


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
        help="let routers prefer experts near the home of the domain, as trained (moe.router.local_term)",
    )
    how.add_argument(
        "--tokenizer", metavar="FILE", help="the tokenizer (default: the checkpoint's own, or data.path's)"
    )
    parser.add_argument("--json", action="store_true", help="print an object a prompt: prompt, domain, text, tokens")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The options that make `SamplingSettings`, which checks them."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--max-new-tokens", type=positive, default=64, metavar="N", help="tokens a text at most (default 64)"
    )
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0: the likeliest token (default); else logits / T"
    )
    group.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="only the K likeliest tokens; 0: all (default)"
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="only the likeliest tokens that make up P (default 1: all)",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="tokens in prompt or output; 1: none (default)",
    )
    group.add_argument(
        "--frequency-penalty",
        type=float,
        default=0.0,
        metavar="F",
        help="each time a token is in the output (default 0)",
    )
    group.add_argument(
        "--presence-penalty", type=float, default=0.0, metavar="F", help="once a token is in the output (default 0)"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the random numbers (default 0)")
    group.add_argument(
        "--ignore-end", dest="stop_at_end", action="store_false", help="continue with another document at end-of-text"
    )


def _generate(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.inference.prompts import generate

    return generate(config, options)
