"""Which dispatchers there are: the package's, and the files that a user names.

A dispatcher declares itself by `DISPATCHER`, a `DispatcherSpec`, in a module without MindSpore, so that configurations
are read and jobs are planned without it: the package's in `specs/NAME.py`. Its Cells and `build(collectives, setup,
tag)`, which makes one, are in `NAME.py`, imported when it is built. A file of one's own holds both.
"""

import re
from dataclasses import dataclass, field
from types import ModuleType
from typing import Callable, Dict, List, Mapping, Sequence, Tuple, Union, overload

from locmoe_ops.declared import Declared, Registry
from locmoe_ops.dispatch import specs
from locmoe_ops.dispatch.geometry import DispatchExchange, DispatchSetup, LayerSlots
from locmoe_ops.errors import InputError
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
KEYS = (
    "dispatch.ragged_limit",
    "dispatch.group_wise",
    "dispatch.chunks",
    "capacity.local_share",
    "capacity.measured_share",
    "capacity.node_share",
    *SLOT_KEYS,
)

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
        counts_copies: whether it counts the copies of tokens that it sends to other nodes (`Dispatcher.counts_copies`).
    """

    slots: Callable[[DispatchSetup], LayerSlots]
    exchanges: Callable[[DispatchSetup, LayerSlots], Sequence[DispatchExchange]]
    keys: Tuple[str, ...] = SLOT_KEYS
    reasons: Mapping[str, str] = field(default_factory=dict)
    most_chunks: int = MOST_CHUNKS
    has_slots: bool = True
    localises: bool = False
    fuses_permute: bool = False
    counts_copies: bool = False


RegisteredDispatcher = Declared[DispatcherSpec]


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


def dispatchers() -> Dict[str, RegisteredDispatcher]:
    """All dispatchers by name: the package's, then those of `add_dispatcher_file`."""
    return _REGISTRY.all()


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
    """Adds the dispatcher of the file `path` outside the package, and returns its name: see `Registry.add_file`."""
    return _REGISTRY.add_file(path)


def remove_dispatcher(name: str) -> None:
    """Forgets the dispatcher `name`, which `add_dispatcher_file` added."""
    _REGISTRY.remove(name)


def load_dispatcher(name: str) -> ModuleType:
    """The module with the `build` of the dispatcher `name`, which imports MindSpore: see `Registry.load`."""
    dispatcher_spec(name)
    return _REGISTRY.load(dispatchers()[name])


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


_REGISTRY: Registry[DispatcherSpec] = Registry("dispatcher", "build(collectives, setup, tag)", specs, _declaration)
