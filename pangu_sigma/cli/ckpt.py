"""`pangu-sigma ckpt`: looks at checkpoints, and makes one out of another."""

import argparse
from pathlib import Path
from typing import Any, Dict

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.locate import all_checkpoints_named, checkpoints_named
from pangu_sigma.cli.arguments import add_command, add_family, add_plain, positive
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.reporting import SUCCESS


def add_ckpt(commands: Any) -> None:
    """Adds `ckpt` and what belongs to it to the program's parser."""
    parsers = add_family(commands, "ckpt", "look at checkpoints, and make one out of another")
    inspect = add_plain(parsers, "inspect", "what a checkpoint holds", _inspect)
    inspect.add_argument("path", metavar="PATH", help="checkpoint folder, or a run: its newest")
    inspect.add_argument("--tensors", action="store_true", help="list every tensor")
    verify = add_plain(parsers, "verify", "every byte against its checksum; status 2 where one differs", _verify)
    verify.add_argument("paths", metavar="PATH", nargs="+", help="checkpoint folders, or runs: all of each")
    diff = add_plain(parsers, "diff", "where two checkpoints differ; status 1 where they do", _diff)
    diff.add_argument("left", metavar="PATH", help="checkpoint folder, or a run: its newest")
    diff.add_argument("right", metavar="PATH", help="the other one")
    reshard = add_plain(
        parsers, "reshard", "the same tensors, each whole, in other files; memory of the largest tensor", _reshard
    )
    _add_ends(reshard, required=True)
    reshard.add_argument("--weights-only", action="store_true", help="leave out what only training needs")
    extract = add_plain(
        parsers, "extract", "a smaller model of one domain, which needs nothing of the others", _extract
    )
    _add_ends(extract)
    extract.add_argument("--domain", required=True, metavar="D", help="name or number of the domain")
    extract.add_argument("--optimizer", action="store_true", help="keep what training needs, so that a run can resume")
    extract.add_argument(
        "--tokenizer", metavar="FILE", help="tokenizer to put into it (default: SOURCE's own, or data.path's)"
    )
    export_map = add_plain(
        parsers, "export-map", "the maps from token ids to experts, in a file that others can read", _export_map
    )
    export_map.add_argument(
        "source",
        metavar="SOURCE",
        help="checkpoint folder, or a run: its newest; or a configuration: of its run, or else the maps it will draw",
    )
    export_map.add_argument("target", metavar="TARGET", help="new file, such as maps.safetensors (docs/hash_maps.md)")
    _add_inherit(parsers)


def _add_ends(parser: argparse.ArgumentParser, required: bool = False) -> None:
    parser.add_argument("source", metavar="SOURCE", help="checkpoint folder, or a run: its newest")
    parser.add_argument("target", metavar="TARGET", help="new checkpoint folder")
    _add_shards(parser, required)


def _add_shards(parser: argparse.ArgumentParser, required: bool = False) -> None:
    extra: Dict[str, Any] = {} if required else {"default": 1}
    parser.add_argument(
        "--shards",
        type=positive,
        metavar="N",
        required=required,
        help=f"files of about equal size{'' if required else ' (default 1)'}",
        **extra,
    )


def _add_inherit(parsers: Any) -> None:
    inherit = add_command(
        parsers, "inherit", "a model that begins as a dense PanGu-alpha, of whatever program", _inherit
    )
    inherit.add_argument(
        "source",
        metavar="SOURCE",
        help="checkpoint folder or run of a dense model; PanGu-alpha's or MindFormers' .ckpt file; or a folder of a "
        "PyTorch port of PanGu-alpha (config.json and model.safetensors)",
    )
    inherit.add_argument("target", metavar="TARGET", help="new checkpoint folder")
    _add_shards(inherit)
    inherit.add_argument(
        "--noise",
        type=_share,
        default=0.0,
        metavar="R",
        help="noise on the experts' matrices, over the standard deviation of each (default 0)",
    )
    inherit.add_argument("--noise-seed", type=positive, default=1, metavar="N", help="of the noise (default 1)")
    inherit.add_argument(
        "--source-tokenizer", metavar="FILE", help="the dense model's tokenizer: match word rows by piece, not by id"
    )
    inherit.add_argument(
        "--final-norm",
        choices=("before_query", "after_query"),
        help="of a .ckpt file: where its final norm stands; after the query layer if trained with pipeline parallelism",
    )


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 100.0:
        raise ValueError
    return value


_share.__name__ = "number from 0"


def _inspect(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.checkpoint.surgery.inspect import inspect

    inspect(checkpoints_named(options.path), options.tensors)
    return SUCCESS


def _verify(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.checkpoint.surgery.inspect import verify

    verify(all_checkpoints_named(options.paths))
    return SUCCESS


def _diff(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.checkpoint.surgery.difference import diff

    return diff(checkpoints_named(options.left), checkpoints_named(options.right))


def _reshard(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.checkpoint.surgery.rewrite import reshard

    reshard(checkpoints_named(options.source), options.target, options.shards, options.weights_only)
    return SUCCESS


def _extract(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.checkpoint.surgery.extract import extract

    source = checkpoints_named(options.source)
    extract(source, options.target, options.domain, options.shards, options.optimizer, options.tokenizer)
    return SUCCESS


def _export_map(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.checkpoint.surgery.export_map import export_map

    export_map(options.source, options.target)
    return SUCCESS


def _inherit(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.config.validate import validate

    validate(config, _ranks(config))
    from pangu_sigma.checkpoint.surgery.dense import DenseModel, OwnModel, PanguAlpha
    from pangu_sigma.checkpoint.surgery.hugging_face import HuggingFaceModel, is_hugging_face_folder
    from pangu_sigma.checkpoint.surgery.inherit import Noise, inherit

    source = Path(options.source)
    dense: DenseModel
    if source.suffix == ".ckpt":
        if options.final_norm is None:
            raise InputError(
                f"--final-norm: {source} does not say where the final norm stands; expected before_query, or "
                "after_query if it was trained with pipeline parallelism"
            )
        dense = PanguAlpha(source, options.final_norm)
    else:
        if options.final_norm is not None:
            raise InputError(
                f"--final-norm {options.final_norm}: {source} is no .ckpt file, and says itself where the final norm "
                "stands"
            )
        dense = HuggingFaceModel(source) if is_hugging_face_folder(source) else OwnModel(checkpoints_named(source))
    inherit(
        dense,
        options.target,
        config,
        Noise(options.noise, options.noise_seed),
        options.source_tokenizer,
        options.shards,
    )
    return SUCCESS


def _ranks(config: Config) -> int:
    """The smallest job that the configuration fits."""
    parallel = config.parallel
    model = parallel.expert * parallel.tensor
    node = parallel.ranks_per_node or 1
    return model if model % node == 0 else node
