"""`pangu-sigma config`: a configuration checked and shown, and the examples that come with the program."""

import argparse
import shutil
from pathlib import Path
from textwrap import shorten
from typing import Any, Dict, Mapping

import yaml

from locmoe_ops.errors import InputError
from pangu_sigma.cli.arguments import add_overrides, add_plain, positive
from pangu_sigma.config.json_schema import schema_text
from pangu_sigma.config.load import to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import validate
from pangu_sigma.runtime.reporting import SUCCESS
from pangu_sigma.runtime.resources import shipped_files
from pangu_sigma.runtime.text_table import TableColumn, text_table


def add_config(commands: Any) -> None:
    """Adds the command to the program's parser."""
    config = add_plain(commands, "config", "check a configuration and print it with all defaults", _show_config)
    config.add_argument(
        "config", metavar="CONFIG", nargs="?", help="YAML configuration file, or a run or checkpoint folder: its own"
    )
    add_overrides(config)
    config.add_argument(
        "--list", action="store_true", help="list the example configurations that come with the program, instead"
    )
    config.add_argument(
        "--copy", metavar="FOLDER", help="copy them and the launchers into FOLDER/configs and FOLDER/scripts, instead"
    )
    config.add_argument("--ranks", type=positive, default=1, metavar="N", help="check it for N ranks (default 1)")
    config.add_argument(
        "--changed", action="store_true", help="print only what differs from the defaults, as a configuration"
    )
    config.add_argument(
        "--schema", action="store_true", help="print the JSON Schema of all keys, for editors of YAML, instead"
    )
    config.add_argument("--key", metavar="KEY.PATH", help="print the value of this key only, as in train.output_dir")


def _show_config(config: Config, options: argparse.Namespace) -> int:
    if options.list or options.copy is not None or options.schema:
        return _show_examples(options)
    if options.changed and options.key:
        raise InputError(f"--key {options.key}: given with --changed, which prints all keys that differ; expected one")
    if options.config is None:
        raise InputError(
            "config: no configuration given; expected a YAML file or a run, or --list for those that come with the "
            "program"
        )
    validate(config, options.ranks)
    value: Any = changed(to_dict(config), to_dict(Config())) if options.changed else to_dict(config)
    for name in options.key.split(".") if options.key else []:
        if not isinstance(value, dict) or name not in value:
            raise InputError(f"--key {options.key}: no such key")
        value = value[name]
    text = value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    print(text.removesuffix("...\n").rstrip("\n"))  # YAML ends a document that is one plain value with dots
    return SUCCESS


def changed(value: Dict[str, Any], default: Mapping[str, Any]) -> Dict[str, Any]:
    """What of a configuration differs from another one, as nested mappings.

    Args:
        value: the configuration, as of `to_dict`.
        default: the other one.
    """
    found = {}
    for name, own in value.items():
        other = default.get(name)
        if isinstance(own, dict) and isinstance(other, dict) and other:
            own, other = changed(own, other), {}
        if own != other or name not in default:
            found[name] = own
    return found


def _show_examples(options: argparse.Namespace) -> int:
    """Lists the configurations that come with the program, each with what its first line says, or copies them and the
    launchers, or prints what a configuration may hold.
    """
    asked = options.list + options.schema + (options.copy is not None)
    if options.config is not None or options.overrides or options.changed or options.key or asked > 1:
        raise InputError("config: --list, --copy and --schema stand alone; expected one of them and nothing else")
    if options.schema:
        print(schema_text(), end="")
        return SUCCESS
    if options.copy is not None:
        _copy_files(Path(options.copy))
        return SUCCESS
    rows = [
        (name, shorten(path.read_text(encoding="utf-8").splitlines()[0].lstrip("# "), 72, placeholder=" ..."))
        for name, path in shipped_files().items()
        if name.startswith("configs/") and name.endswith(".yaml")
    ]
    columns = (TableColumn("configuration", "<"), TableColumn("what it is", "<", wraps=True))
    print("\n".join(text_table(columns, rows)))
    print("\npangu-sigma config --copy FOLDER puts them into a folder, with the launchers.")
    return SUCCESS


def _copy_files(target: Path) -> None:
    """Copies what comes with the program. A file that is there already is left as it is, and must be the same: nothing
    is overwritten.
    """
    files = {target / name: source for name, source in shipped_files().items()}
    try:
        different = [
            path for path, source in files.items() if path.exists() and path.read_bytes() != source.read_bytes()
        ]
        if different:
            raise InputError(
                f"--copy: {different[0]} is there, with other content ({len(different)} such files); "
                "expected another folder"
            )
        for path, source in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                shutil.copyfile(source, path)
    except OSError as error:
        raise InputError(
            f"--copy: cannot write {error.filename or target} ({error.strerror}); expected a writable folder"
        ) from None
    print(f"{len(files)} files are in {target / 'configs'} and {target / 'scripts'}")
