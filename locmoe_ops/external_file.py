"""Python files outside the package that a user names, for a router or a dispatcher of one's own."""

import importlib.util
import keyword
import sys
from pathlib import Path
from types import ModuleType

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import read_text


def external_name(path: str, what: str, example: str) -> str:
    """The name that a file gives: its own, without the suffix.

    Args:
        path: of the file. what: what it is to hold, as in "router". example: of a good name.

    Raises InputError: the file cannot be read, or its name is none.
    """
    read_text(path, f"a {what}'s Python file")  # for its messages
    name = Path(path).stem
    if Path(path).suffix != ".py" or not name.isidentifier() or keyword.iskeyword(name):
        raise InputError(f"{path}: the file's name is the {what}'s; expected a Python file named as in {example}")
    return name


def import_external(path: str, what: str) -> ModuleType:
    """The file's module, imported whole. Its code runs with the rights of this process: only call this with what the
    user named, never with what an input file names.

    Args:
        path: of the file. what: what it is to hold, as in "router".

    Raises InputError: its code fails.
    """
    file = Path(path).absolute()
    name = external_module(what, file.stem)
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None and found.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(found)  # MindSpore looks for its source there
    try:
        found.loader.exec_module(module)
    except Exception as error:  # whatever the user's code may raise
        del sys.modules[name]
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{file}: it cannot be imported ({why})") from error
    return module


def forget_external(what: str, name: str) -> None:
    """Forgets the module of `import_external`; `what` and `name` as there."""
    sys.modules.pop(external_module(what, name), None)


def external_module(what: str, name: str) -> str:
    """Name of the module of the file `name`, which holds `what`."""
    return f"locmoe_external_{what}_{name}"
