"""`pangu-sigma export`: a checkpoint's model as graphs, or as one file of weights by its own or others' names."""

import argparse
from pathlib import Path
from typing import Any

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.locate import MODEL
from pangu_sigma.cli.arguments import add_command, positive
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.reporting import SUCCESS

_DENSE = ("hf-pangu-alpha", "mindformers-pangu-alpha")


def add_export(commands: Any) -> None:
    """Adds the command to the program's parser."""
    parser = add_command(
        commands,
        "export",
        "a run's newest checkpoint as MindIR graphs for generation, or as one file of weights",
        _export,
        MODEL,
    )
    parser.add_argument(
        "--format",
        required=True,
        choices=("mindir", "safetensors", *_DENSE),
        help="what to write: graphs; weights by this project's names; those of a dense model in the layout of the "
        "public PyTorch ports of PanGu-alpha (Hugging Face), or of MindFormers",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder for it")
    parser.add_argument("--rows", type=positive, metavar="N", help="mindir: rows decoded together (default 1)")
    parser.add_argument(
        "--length", type=positive, metavar="L", help="mindir: most tokens of a row (default: model.sequence_length)"
    )
    parser.add_argument("--local-term", action="store_true", help="mindir: as of generate")
    parser.add_argument(
        "--dense-part",
        action="store_true",
        help="hf- and mindformers-pangu-alpha: of a model with experts what all of them share, which is no whole model",
    )
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="the tokenizer (default: the checkpoint's own, or data.path's)"
    )


def _export(config: Config, options: argparse.Namespace) -> int:
    _write(config, options)
    files = [file for file in Path(options.output).iterdir() if file.is_file()]
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"exported: {len(files)} files, {size:,.1f} MB, in {options.output}", flush=True)
    return SUCCESS


def _write(config: Config, options: argparse.Namespace) -> None:
    from pangu_sigma.inference.export import export_mindir, export_safetensors

    if options.dense_part and options.format not in _DENSE:
        raise InputError(
            f"--dense-part is given with --format {options.format}, which holds experts as well; expected one of "
            f"{', '.join(_DENSE)}"
        )
    if options.format == "mindir":
        export_mindir(
            config, Path(options.output), options.rows or 1, options.length, options.tokenizer, options.local_term
        )
        return
    for name in ("rows", "length", "local_term"):
        if getattr(options, name):
            raise InputError(
                f"--{name.replace('_', '-')} is given with --format {options.format}, which holds weights alone; "
                "expected mindir"
            )
    if options.format == "safetensors":
        export_safetensors(config, Path(options.output), options.tokenizer)
        return
    from pangu_sigma.inference.export_dense import export_hf_pangu_alpha, export_mindformers

    export = export_hf_pangu_alpha if options.format == "hf-pangu-alpha" else export_mindformers
    export(config, Path(options.output), options.tokenizer, options.dense_part)
