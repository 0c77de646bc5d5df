"""Which dispatchers there are: the package's, and the files that a user names.

A dispatcher declares itself by `DISPATCHER`, a `DispatcherSpec`, in a module without MindSpore, so that configurations
are read and jobs are planned without it: the package's in `specs/NAME.py`. Its Cells and `build(collectives, setup,
tag)`, which makes one, are in `NAME.py`, imported when it is built. A file of one's own holds both.
"""

import importlib
import pkgutil
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Callable, Dict, List, Mapping, Sequence, Tuple, Union, overload

from locmoe_ops.dispatch import specs
from locmoe_ops.dispatch.geometry import DispatchExchange, DispatchSetup, LayerSlots
from locmoe_ops.errors import InputError
from locmoe_ops.external_file import external_name, forget_external, import_external
from locmoe_ops.json_file import read_text

MOST_CHUNKS = 16
# What follows from having slots: that they may be too few, and which assignments then keep theirs.
SLOT_KEYS = (
    "capacity.mode",
    "capacity.factor",
    "capacity.evaluation_factor",
    "dispatch.drop_priority",
    "dispatch.overflow",
)
# Keys of `moe` that a dispatcher may use or not; one that it does not use must keep its default.
KEYS = ("dispatch.ragged_limit", "dispatch.group_wise", "dispatch.chunks", "capacity.local_share", *SLOT_KEYS)

_DECLARES = re.compile(r"^DISPATCHER\s*[:=]", re.MULTILINE)


@dataclass(frozen=True)
class DispatcherSpec:
    """What the program must know of a dispatcher besides how to build it.

    Attributes:
        slots: its slots, and the rows that experts are called with.
        exchanges: what it exchanges in a micro-batch, without `share_exchanges`.
        keys: those of `KEYS` that it uses.
        reasons: by key, why it is refused, as in "which has one tier"; of `dispatch.chunks`, also why there may be no
            more.
        most_chunks: the largest `moe.dispatch.chunks`.
        has_slots: False where rows travel as routing has it: shapes that only the run knows, and nothing is dropped.
        localises: whether it gains where tokens stay on their nodes.
        fuses_permute: whether it takes `runtime.fused.permute`.
    """

    slots: Callable[[DispatchSetup], LayerSlots]
    exchanges: Callable[[DispatchSetup, LayerSlots], Sequence[DispatchExchange]]
    keys: Tuple[str, ...] = SLOT_KEYS
    reasons: Mapping[str, str] = field(default_factory=dict)
    most_chunks: int = MOST_CHUNKS
    has_slots: bool = True
    localises: bool = False
    fuses_permute: bool = False


@dataclass(frozen=True)
class RegisteredDispatcher:
    """A dispatcher by name.

    Attributes:
        name: of its file.
        spec: its declaration. module: of the file that declares it.
        external: whether the user named that file; else it is the package's.
    """

    name: str
    spec: DispatcherSpec
    module: ModuleType
    external: bool = False

    @property
    def origin(self) -> str:
        """Path of the file that declares it."""
        return str(self.module.__file__)


class DispatcherNames(Sequence[str]):
    """The names of all dispatchers that there are at the moment it is read."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: Union[int, slice]) -> Union[str, Sequence[str]]:
        return list(dispatchers())[index]

    def __len__(self) -> int:
        return len(dispatchers())


_EXTERNAL: Dict[str, RegisteredDispatcher] = {}


def dispatchers() -> Dict[str, RegisteredDispatcher]:
    """All dispatchers by name: the package's, then those of `add_dispatcher_file`."""
    return {**_shipped(), **_EXTERNAL}


def dispatcher_spec(name: str) -> DispatcherSpec:
    """What is declared of a dispatcher. Raises InputError where there is none of the name."""
    known = dispatchers()
    if name not in known:
        raise InputError(f"dispatcher: found '{name}', expected one of {', '.join(known)}")
    return known[name].spec


def names_of(wanted: Callable[[DispatcherSpec], bool]) -> List[str]:
    """The dispatchers whose declaration is `wanted`."""
    return [one.name for one in dispatchers().values() if wanted(one.spec)]


def declares_dispatcher(path: str) -> bool:
    """Whether a Python file is a dispatcher's. Raises InputError where it cannot be read."""
    return _DECLARES.search(read_text(path, "a dispatcher's Python file")) is not None


def add_dispatcher_file(path: str) -> str:
    """Adds the dispatcher of the file `path` outside the package, and returns its name, the file's. The same file may
    be added again.

    Its code runs with the rights of this process: only call this with what the user named, never with what an input
    file names.

    Raises InputError: the file cannot be read or imported, its name is taken or is no name, or it declares no
    dispatcher.
    """
    name = external_name(path, "dispatcher", "my_way.py")
    if name in dispatchers():
        known = dispatchers()[name]
        if known.external and known.origin == str(Path(path).absolute()):
            return name
        raise InputError(f"{path}: there is a dispatcher {name} already ({known.origin}); expected another file name")
    module = import_external(path, "dispatcher")
    try:
        _EXTERNAL[name] = RegisteredDispatcher(name, _declaration(module), module, external=True)
    finally:
        if name not in _EXTERNAL:
            forget_external("dispatcher", name)
    return name


def remove_dispatcher(name: str) -> None:
    """Forgets the dispatcher `name`, which `add_dispatcher_file` added."""
    _EXTERNAL.pop(name, None)
    forget_external("dispatcher", name)


def load_dispatcher(name: str) -> ModuleType:
    """The module with the `build` of the dispatcher `name`, which imports MindSpore.

    It is the file that declares the dispatcher; where that has no `build`, the package's `dispatch/NAME.py`.

    Raises InputError: there is no such dispatcher, or nothing builds it.
    """
    dispatcher_spec(name)
    found = dispatchers()[name]
    module = found.module
    if not found.external and not hasattr(module, "build"):
        module = importlib.import_module(f"{__package__}.{name}")
    if not callable(getattr(module, "build", None)):
        raise InputError(f"{module.__file__}: it has no function build; expected build(collectives, setup, tag)")
    return module


@cache
def _shipped() -> Dict[str, RegisteredDispatcher]:
    found = {}
    for _, name, _ in pkgutil.iter_modules(specs.__path__):
        module = importlib.import_module(f"{specs.__name__}.{name}")
        found[name] = RegisteredDispatcher(name, _declaration(module), module)
    return found


def _declaration(module: ModuleType) -> DispatcherSpec:
    """The module's `DISPATCHER`. Raises InputError where it is not what it should be."""
    origin, spec = module.__file__, getattr(module, "DISPATCHER", None)
    if not isinstance(spec, DispatcherSpec):
        raise InputError(
            f"{origin}: found {type(spec).__name__} for DISPATCHER, expected DISPATCHER = DispatcherSpec(...), see "
            "docs/dispatchers.md"
        )
    unknown = sorted({*spec.keys, *spec.reasons} - set(KEYS))
    if unknown:
        raise InputError(f"{origin}: DISPATCHER names the key {unknown[0]}, expected some of {', '.join(KEYS)}")
    return spec
