"""Things that are found by name because their files declare them: routers and dispatchers.

The package's stand in a folder of declarations without MindSpore; a file that a user names holds declaration and Cells.
"""

import importlib
import importlib.util
import keyword
import pkgutil
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Callable, Dict, Generic, Sequence, TypeVar

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import read_text

Spec = TypeVar("Spec")


@dataclass(frozen=True)
class Declared(Generic[Spec]):
    """What a file declares.

    Attributes:
        name: of the file.
        spec: the declaration. module: of the file.
        external: whether the user named that file; else it is the package's.
    """

    name: str
    spec: Spec
    module: ModuleType
    external: bool = False

    @property
    def origin(self) -> str:
        """Path of the file."""
        return str(self.module.__file__)


class Registry(Generic[Spec]):
    """All that is declared of one kind.

    Args:
        kind: as in "router". signature: of the function that makes one, as in "build(context)".
        specs: the package of declarations; Cells and `build` of one are in the file of its name in the package above.
        declaration: gives the declaration of a module; raises InputError where it has none.
        reserved: names that no file may have.
    """

    def __init__(
        self,
        kind: str,
        signature: str,
        specs: ModuleType,
        declaration: Callable[[ModuleType], Spec],
        reserved: Sequence[str] = (),
    ) -> None:
        self._kind, self._signature, self._specs = kind, signature, specs
        self._declaration, self._reserved = declaration, reserved
        self._external: Dict[str, Declared[Spec]] = {}

    @cached_property
    def shipped(self) -> Dict[str, Declared[Spec]]:
        """The package's, by name."""
        found = {}
        for _, name, _ in pkgutil.iter_modules(self._specs.__path__):
            module = importlib.import_module(f"{self._specs.__name__}.{name}")
            found[name] = Declared(name, self._declaration(module), module)
        return found

    def all(self) -> Dict[str, Declared[Spec]]:
        """By name: the package's, then those of `add_file`."""
        return {**self.shipped, **self._external}

    def load(self, found: Declared[Spec]) -> ModuleType:
        """The module with the `build` of `found`, which imports MindSpore: the file that declares it, or else the
        package's file of its name. Raises InputError where neither has one.
        """
        module = found.module
        if not found.external and not hasattr(module, "build"):
            module = importlib.import_module(f"{self._specs.__name__.rpartition('.')[0]}.{found.name}")
        if not callable(getattr(module, "build", None)):
            raise InputError(
                f"{module.__file__}: it has no function build; expected {self._signature}, which makes the {self._kind}"
            )
        return module

    def add_file(self, path: str) -> str:
        """Adds what the file `path` outside the package declares, and returns its name, the file's. The same file may
        be added again.

        Its code runs with the rights of this process: only call this with what the user named, never with what an
        input file names.

        Raises InputError: the file cannot be read or imported, its name is taken or is no name, or it declares nothing.
        """
        read_text(path, f"a {self._kind}'s Python file")  # for its messages
        file = Path(path).absolute()
        name = file.stem
        if file.suffix != ".py" or not name.isidentifier() or keyword.iskeyword(name) or name in self._reserved:
            raise InputError(
                f"{path}: the file's name is the {self._kind}'s; expected a Python file named as in my_{self._kind}.py"
            )
        known = self.all().get(name)
        if known is not None and known.external and known.origin == str(file):
            return name
        if known is not None:
            raise InputError(
                f"{path}: there is a {self._kind} {name} already ({known.origin}); expected another file name"
            )
        found = importlib.util.spec_from_file_location(self._module_name(name), file)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[module.__name__] = module  # MindSpore looks for its source there
        try:
            found.loader.exec_module(module)
        except Exception as error:  # whatever the user's code may raise
            self.remove(name)
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise InputError(f"{file}: it cannot be imported ({why})") from error
        try:
            self._external[name] = Declared(name, self._declaration(module), module, external=True)
        except InputError:
            self.remove(name)
            raise
        return name

    def remove(self, name: str) -> None:
        """Forgets `name`, which `add_file` added."""
        self._external.pop(name, None)
        sys.modules.pop(self._module_name(name), None)

    def _module_name(self, name: str) -> str:
        return f"locmoe_external_{self._kind}_{name}"
