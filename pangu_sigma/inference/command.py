"""`pangu-sigma generate`: a checkpoint goes on with texts."""

import argparse
import json
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema import Config
from pangu_sigma.inference.sampling import SamplingSettings
from pangu_sigma.launch import is_worker


class Prompt(NamedTuple):
    """A text to go on with. domain: name or number, as given; None: the model's only one."""

    text: str
    domain: Optional[str]


def generate(config: Config, options: argparse.Namespace) -> int:
    """Prints what the model makes of the prompts, and returns 0. See `arguments` for the options.

    One prompt is printed as it is written, several are decoded together. Of several ranks the first one prints.

    Raises InputError: as `Generator.load` and `Generator.generate`; no prompt; a prompt file that is none.
    """
    settings = sampling_settings(options)
    prompts = list(_prompts(options))  # told what is wrong before a model is read
    from pangu_sigma.inference.api import Generator

    with Generator.load(config, options.tokenizer, options.local_term, min(options.batch_size, len(prompts) or 1)) as generator:
        with nullcontext() if generator.is_first else redirect_stdout(StringIO()):
            _go_on(generator, prompts, options, settings)
    return 0


def _go_on(generator: Any, prompts: List[Prompt], options: argparse.Namespace, settings: SamplingSettings) -> None:
    domains = [_domain(generator, prompt) for prompt in prompts]
    if options.interactive:
        _answer(generator, _domain(generator, Prompt("", options.domain)), settings)
    elif options.json:
        _print_json(generator, prompts, domains, settings)
    elif len(prompts) == 1:
        _stream(generator, prompts[0].text, domains[0], settings)
    else:
        texts = generator.generate_text([prompt.text for prompt in prompts], domains, settings)
        for number, (prompt, text) in enumerate(zip(prompts, texts)):
            print(f"--- {number} ({generator.words.domains[domains[number]]})\n{prompt.text}{text}")


def sampling_settings(options: argparse.Namespace) -> SamplingSettings:
    """Raises InputError for a value out of range."""
    return SamplingSettings(**{field.name: getattr(options, field.name) for field in fields(SamplingSettings)})


def _prompts(options: argparse.Namespace) -> Iterator[Prompt]:
    given = bool(options.prompt) + bool(options.prompt_file) + options.interactive
    if given != 1:
        raise InputError(f"generate: found {given} of --prompt, --prompt-file and --interactive; expected one of them")
    if options.interactive and is_worker():
        raise InputError("--interactive: this is a job of several ranks, which have no terminal; expected --prompt or --prompt-file")
    for text in options.prompt:
        yield Prompt(text, options.domain)
    if options.prompt_file:
        yield from read_prompts(Path(options.prompt_file), options.domain)


def read_prompts(path: Path, domain: Optional[str]) -> Iterator[Prompt]:
    """The prompts of a file, one each line. Raises InputError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"--prompt-file {path}: cannot be read ({reason}); expected a text file, a prompt each line") from None
    if not lines:
        raise InputError(f"--prompt-file {path}: empty; expected a prompt each line")
    for number, line in enumerate(lines, start=1):
        yield _from_json(f"{path}:{number}", line, domain) if path.suffix == ".jsonl" else Prompt(line, domain)


def _from_json(where: str, line: str, domain: Optional[str]) -> Prompt:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str) or set(record) - {"prompt", "domain"}:
        raise InputError(f"{where}: found {line[:60]!r}; expected an object with `prompt`, a text, and perhaps `domain`")
    return Prompt(record["prompt"], str(record["domain"]) if "domain" in record else domain)


def _domain(generator: Any, prompt: Prompt) -> int:
    words = generator.words
    if prompt.domain is None and len(words.domains) > 1:
        raise InputError(f"--domain: none given; expected one of {', '.join(words.domains)}")
    number: int = words.domain(prompt.domain or 0)
    return number


def _print_json(generator: Any, prompts: List[Prompt], domains: List[int], settings: SamplingSettings) -> None:
    ids = [generator.words.encode(prompt.text, domain) for prompt, domain in zip(prompts, domains)]
    for prompt, domain, output in zip(prompts, domains, generator.generate(ids, domains, settings)):
        found: Dict[str, Any] = {"prompt": prompt.text, "domain": generator.words.domains[domain],
                                 "text": generator.words.decode(output), "tokens": len(output)}
        print(json.dumps(found, ensure_ascii=False))


def _stream(generator: Any, text: str, domain: int, settings: SamplingSettings) -> None:
    pieces = generator.stream_text(text, domain, settings)
    print(text, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _answer(generator: Any, domain: int, settings: SamplingSettings) -> None:
    """Prompts from the terminal, each a document of its own; a prompt that does not fit is told and forgotten."""
    for text in _asked(generator.words.domains[domain]):
        try:
            _stream(generator, text, domain, settings)
        except InputError as error:
            print(error, file=sys.stderr)


def _asked(name: str) -> Iterator[str]:
    while True:
        try:
            text = input(f"{name}> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not text:
            return
        yield text
