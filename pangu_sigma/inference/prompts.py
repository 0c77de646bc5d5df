"""`pangu-sigma generate`: a checkpoint continues texts."""

import argparse
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any, Iterator, List, NamedTuple, Optional

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema import Config
from pangu_sigma.data.jsonl import check_text, is_jsonl, read_lines, read_records, shorten
from pangu_sigma.inference.sampling import SamplingSettings
from pangu_sigma.runtime.launch import is_worker
from pangu_sigma.runtime.messages import log
from pangu_sigma.runtime.reporting import print_json


class Prompt(NamedTuple):
    """A text to continue.

    Attributes:
        text: the beginning of a document.
        domain: name or number, as given; None: the model's only one.
        where: what named the domain, for messages.
    """

    text: str
    domain: Optional[str]
    where: str = "--domain"


def generate(config: Config, options: argparse.Namespace) -> int:
    """Prints what the model makes of the prompts, and returns 0. One prompt is printed as it is written, several are
    decoded together. Of several ranks the first one prints.

    Args:
        config: of a run; says which checkpoint. options: of the command line, see `pangu_sigma.cli.generate`.

    Raises InputError: as `Generator.load` and `Generator.generate`; no prompt; a prompt file that is none.
    """
    settings = sampling_settings(options)
    prompts = list(_prompts(options))  # told what is wrong before a model is read
    from pangu_sigma.inference.generator import Generator

    batch_size = min(options.batch_size, len(prompts) or 1)
    with Generator.load(config, options.tokenizer, options.local_term, batch_size) as generator:
        with nullcontext() if generator.is_first else redirect_stdout(StringIO()):
            domains = [_domain(generator, prompt) for prompt in prompts]
            if options.interactive:
                _answer(generator, _domain(generator, Prompt("", options.domain)), settings)
            elif options.json:
                ids = [generator.codec.encode(prompt.text, domain) for prompt, domain in zip(prompts, domains)]
                for prompt, domain, output in zip(prompts, domains, generator.generate(ids, domains, settings)):
                    text, name = generator.codec.decode(output), generator.codec.domains[domain]
                    print_json({"prompt": prompt.text, "domain": name, "text": text, "tokens": len(output)})
            elif len(prompts) == 1:
                _stream(generator, prompts[0].text, domains[0], settings)
            else:
                texts = generator.generate_text([prompt.text for prompt in prompts], domains, settings)
                for number, (prompt, text) in enumerate(zip(prompts, texts)):
                    name = generator.codec.domains[domains[number]]
                    print(f"--- {number} ({name})\n{prompt.text}{text}")
    return 0


def sampling_settings(options: argparse.Namespace) -> SamplingSettings:
    """Raises InputError for a value out of range."""
    return SamplingSettings(**{field.name: getattr(options, field.name) for field in fields(SamplingSettings)})


def _prompts(options: argparse.Namespace) -> Iterator[Prompt]:
    given = bool(options.prompt) + bool(options.prompt_file) + options.interactive
    if given != 1:
        raise InputError(f"generate: found {given} of --prompt, --prompt-file and --interactive; expected one of them")
    if options.interactive and is_worker():
        raise InputError(
            "--interactive: this is a job of several ranks, which have no terminal; expected --prompt or --prompt-file"
        )
    for text in options.prompt:
        yield Prompt(check_text(text, "--prompt"), options.domain)
    if options.prompt_file:
        yield from read_prompts(Path(options.prompt_file), options.domain)


def read_prompts(path: Path, domain: Optional[str]) -> List[Prompt]:
    """The prompts of a file: an object a line of a file of JSON, a text a line of any other. Blank lines are passed
    over.

    Args:
        path: the file. Its name says whether it is one of JSON (.jsonl, .ndjson).
        domain: of prompts that name none themselves.

    Raises:
        InputError: names file and line.
    """
    try:
        if is_jsonl(path):
            records = read_records(path, "an object with `prompt`, a text, and perhaps `domain`")
            prompts = [_prompt_of(record, domain) for record in records]
        else:
            prompts = [Prompt(line, domain) for line, _ in read_lines(path, "a text file, a prompt each line")]
    except InputError as error:
        raise InputError(f"--prompt-file {error}") from None
    if not prompts:
        raise InputError(f"--prompt-file {path}: empty; expected a prompt each line")
    return prompts


def _prompt_of(record: Any, domain: Optional[str]) -> Prompt:
    """The prompt of a line of a file of JSON."""
    others = sorted(set(record.values) - {"prompt", "domain"})
    if others:
        found = shorten(repr(others[0]), 60)
        raise InputError(f"{record.where}: found the field {found}; expected `prompt`, and perhaps `domain`")
    own = record.values.get("domain")
    if own is None:
        return Prompt(record.text("prompt"), domain)
    number = isinstance(own, int) and not isinstance(own, bool)
    own = str(own) if number else record.text("domain")
    return Prompt(record.text("prompt"), own, record.where)


def _domain(generator: Any, prompt: Prompt) -> int:
    codec = generator.codec
    if prompt.domain is None and len(codec.domains) > 1:
        raise InputError(f"--domain: none given; expected one of {', '.join(codec.domains)}")
    try:
        number: int = codec.domain(0 if prompt.domain is None else prompt.domain)
    except InputError as error:
        raise InputError(f"{prompt.where}: {error}") from None
    return number


def _stream(generator: Any, text: str, domain: int, settings: SamplingSettings) -> None:
    pieces = generator.stream_text(text, domain, settings)
    # The first piece before anything is shown: it may wait for the compiler, whose seconds are counted on a line of
    # their own.
    print(text, next(pieces, ""), sep="", end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _answer(generator: Any, domain: int, settings: SamplingSettings) -> None:
    """Prompts from the terminal, each a document of its own, up to an empty line or the end of the input; a prompt that
    does not fit is told and forgotten.
    """
    asking = f"{generator.codec.domains[domain]}> " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(asking)
        except EOFError:
            return
        if not text:
            return
        try:
            _stream(generator, check_text(text, "the prompt"), domain, settings)
        except InputError as error:
            log.error("%s", error)
