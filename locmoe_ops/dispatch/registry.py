"""Which dispatchers there are: every file of `locmoe_ops/dispatch` that has a `DISPATCHER`, and the files that a user
names.

A dispatcher's file holds everything about it, and its name is the dispatcher's. Its head, all that stands above the
first import of MindSpore, is the declaration: `DISPATCHER`, a `DispatcherSpec`, and the functions that it names. The
rest are its Cells and `build(collectives, setup, tag)`, which makes one. Whoever reads a configuration or plans a job
runs the head alone and needs no MindSpore; the whole file is imported when the dispatcher is built.
"""

import importlib
import importlib.util
import keyword
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Callable, Dict, List, Mapping, Sequence, Tuple, Union, overload

from locmoe_ops.dispatch.geometry import DispatchExchange, DispatchSetup, LayerSlots
from locmoe_ops.errors import InputError
from locmoe_ops.json_file import read_text

FOLDER = Path(__file__).parent
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
_END_OF_HEAD = re.compile(r"^(?:import|from) mindspore\b", re.MULTILINE)


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
        name: the file's. spec: its declaration. origin: path of the file.
        external: True of a file that the user named.
    """

    name: str
    spec: DispatcherSpec
    origin: str
    external: bool = False


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
    """Adds the dispatcher of a file outside the package, and returns its name, the file's. The same file may be added
    again.

    Its code runs with the rights of this process: only call this with what the user named, never with what an input
    file names.

    Raises InputError: the file cannot be read, its name is taken or is no name, or its declaration fails.
    """
    file = Path(path).absolute()
    source, name = read_text(path, "a dispatcher's Python file"), file.stem
    if file.suffix != ".py" or not name.isidentifier() or keyword.iskeyword(name):
        raise InputError(f"{path}: the file's name is the dispatcher's; expected a Python file named as in my_way.py")
    if name in _shipped() or name in _EXTERNAL and _EXTERNAL[name].origin != str(file):
        raise InputError(
            f"{path}: there is a dispatcher {name} already ({dispatchers()[name].origin}); expected another file name"
        )
    _EXTERNAL[name] = RegisteredDispatcher(name, read_declaration(source, str(file)), str(file), external=True)
    return name


def remove_dispatcher(name: str) -> None:
    """Forgets a dispatcher that `add_dispatcher_file` added."""
    _EXTERNAL.pop(name, None)
    sys.modules.pop(f"locmoe_external_dispatcher_{name}", None)


def load_dispatcher(name: str) -> ModuleType:
    """The dispatcher's whole file, imported; it has a function `build`. Raises InputError where it has not, or there is
    no such dispatcher.
    """
    dispatcher_spec(name)
    found = dispatchers()[name]
    if not found.external:
        module = importlib.import_module(f"{__package__}.{name}")
    else:
        full_name = f"locmoe_external_dispatcher_{name}"
        if full_name not in sys.modules:
            spec = importlib.util.spec_from_file_location(full_name, found.origin)
            assert spec is not None and spec.loader is not None
            sys.modules[full_name] = importlib.util.module_from_spec(spec)  # MindSpore finds sources by their module
            try:
                spec.loader.exec_module(sys.modules[full_name])
            except BaseException:
                del sys.modules[full_name]
                raise
        module = sys.modules[full_name]
    if not callable(getattr(module, "build", None)):
        raise InputError(f"{found.origin}: it has no function build; expected build(collectives, setup, tag)")
    return module


def read_declaration(source: str, origin: str) -> DispatcherSpec:
    """The `DISPATCHER` of a file, whose head is run.

    Args:
        source: the file's text. origin: its path, for messages.

    Raises InputError: the head fails, or `DISPATCHER` is not what it should be.
    """
    module = ModuleType(f"declaration of {Path(origin).stem}")
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    try:
        exec(compile(_END_OF_HEAD.split(source, maxsplit=1)[0], origin, "exec", dont_inherit=True), module.__dict__)
    except Exception as error:  # whatever the user's code may raise
        raise InputError(
            f"{origin}: its DISPATCHER cannot be read ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    spec = getattr(module, "DISPATCHER", None)
    if not isinstance(spec, DispatcherSpec):
        raise InputError(
            f"{origin}: found {type(spec).__name__} for DISPATCHER above the first import of MindSpore, expected "
            "DISPATCHER = DispatcherSpec(...), see docs/dispatchers.md"
        )
    unknown = sorted({*spec.keys, *spec.reasons} - set(KEYS))
    if unknown:
        raise InputError(f"{origin}: DISPATCHER names the key {unknown[0]}, expected some of {', '.join(KEYS)}")
    return spec


@cache
def _shipped() -> Dict[str, RegisteredDispatcher]:
    found = {}
    for file in sorted(FOLDER.glob("*.py")):
        source = file.read_text(encoding="utf-8")
        if _DECLARES.search(source):
            found[file.stem] = RegisteredDispatcher(file.stem, read_declaration(source, str(file)), str(file))
    return found
