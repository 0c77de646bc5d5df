"""Which routers there are: every file of `locmoe_ops/routers` that has a `ROUTER`, and the files that a user names.

A router's file holds everything about it, and its name is the router's: `ROUTER`, a `RouterSpec`, with what
configurations and the planner must know; `build(request)`, which makes the router (`locmoe_ops.routers.context`); and
its Cells.

Who reads a configuration needs the first without MindSpore, which the file imports. So a declaration is read alone: of
the file's top-level statements only those run that `ROUTER` refers to, by name, over any number of steps. The file as a
whole is imported when the router is built.
"""

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import keyword
import pkgutil
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple, Type

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import read_text

FOLDER = Path(__file__).with_name("routers")
TERMS = ("local_term", "balance_rate")  # keys of `moe.router` that a router's selection may take up
_OTHER_KEYS = ("type", "top_k", "statistics", *TERMS)  # of `moe.router`, beside which routers' names stand


@dataclass(frozen=True)
class RouterSizes:
    """What a declaration is told of the model: d, E and G."""

    hidden_size: int
    num_experts: int
    num_groups: int = 1

    @property
    def per_group(self) -> int:
        """n: experts that compete for a token."""
        return self.num_experts // self.num_groups


@dataclass(frozen=True)
class RouterCost:
    """What a router costs each sparse layer, for the planner.

    Attributes: weights: shapes of its trainable tensors, by their names inside the router. products: multiply-adds a
        token in the
    forward pass. statistics: the sets of tokens over which it sums counts and probabilities (`RoutingStatistics`):
    `none`; `asked`, those of `moe.router.statistics`; `node`, the same but never all tokens.
    """

    weights: Mapping[str, Tuple[int, ...]] = field(default_factory=dict)
    products: int = 0
    statistics: str = "none"


@dataclass(frozen=True)
class NoOptions:
    """For a router without keys of its own."""


def nothing_to_check(own: Any, sizes: RouterSizes) -> None:
    """A router that goes with all sizes and all values of its keys."""


def no_cost(own: Any, sizes: RouterSizes) -> RouterCost:
    """A router without weights and losses."""
    return RouterCost()


def dense_gate_cost(own: Any, sizes: RouterSizes) -> RouterCost:
    """A `DenseGate`, and a loss over the tokens asked for."""
    weights = {"gate.weight": (sizes.num_experts, sizes.hidden_size)}
    return RouterCost(weights, sizes.num_experts * sizes.hidden_size, "asked")


def check_blocks(what: str, sizes: RouterSizes) -> None:
    """Raises InputError where grouped average pooling finds no equal blocks of features; `what` averages them."""
    if sizes.hidden_size % sizes.per_group:
        raise InputError(
            f"moe.router.{what} averages equal blocks of features: the {sizes.per_group} experts of a group "
            f"(moe.num_experts {sizes.num_experts} / moe.num_groups {sizes.num_groups}) do not divide model.hidden_size "
            f"({sizes.hidden_size})"
        )


@dataclass(frozen=True)
class RouterSpec:
    """What the program must know of a router besides how to build it. The defaults suit one that follows a rule of its
    own.

    Attributes:
        options: frozen dataclass of the keys in the router's section, each a `locmoe_ops.keys.key`.
        picks: ends "which ...", where a term in the selection is refused.
        top_k: the only number of experts a token that it picks; None: any.
        terms: those of `TERMS` that its `preference` may be made of.
        second_experts: whether it offers second experts, to which overflow is re-picked.
        gate_weights: whether it is a `GatedRouter` with a row of weights an expert, with which cosines are measured.
        counts_undecided: whether its `Router.counts_undecided` is set: it then tells for each token whether its rule
            left it undecided.
        expert_choice: whether experts choose among the tokens that want their slots: then drop priority is `weight`,
            and there are slots.
        localises: whether it seeks to keep tokens on their nodes.
        check: raises InputError where its keys, and the model's sizes, do not fit together.
        cost: for the planner.
    """

    options: Type[Any] = NoOptions
    picks: str = "picks by a rule of its own"
    top_k: Optional[int] = None
    terms: Tuple[str, ...] = ()
    second_experts: bool = False
    gate_weights: bool = False
    counts_undecided: bool = False
    expert_choice: bool = False
    localises: bool = False
    check: Callable[[Any, RouterSizes], None] = nothing_to_check
    cost: Callable[[Any, RouterSizes], RouterCost] = no_cost


@dataclass(frozen=True)
class RegisteredRouter:
    """A router by name. `guest`: from a file that the user named, not of the package."""

    name: str
    kind: RouterSpec
    origin: str
    guest: bool = False


_GUESTS: Dict[str, RegisteredRouter] = {}


def routers() -> Dict[str, RegisteredRouter]:
    """All routers by name: the package's, then those of `add_router_file`."""
    return {**_shipped(), **_GUESTS}


def registered(name: str) -> RegisteredRouter:
    """Raises InputError, with the nearest name, where there is no such router."""
    known = routers()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    raise InputError(
        f"router: found '{name}', expected one of {', '.join(known)}{f' (did you mean {near[0]}?)' if near else ''}"
    )


def router_spec(name: str) -> RouterSpec:
    """What is declared of a router. Raises InputError where there is none of the name."""
    return registered(name).kind


def add_router_file(path: str) -> str:
    """Adds the router of a file outside the package, and returns its name, the file's. The same file may be added
    again.

    Its code runs with the rights of this process: only call this with what the user named, never with what an input
        file names.

    Raises InputError: the file cannot be read, its name is taken or is no name, or it declares no router.
    """
    file = Path(path).absolute()
    source = read_text(path, "a router's Python file")
    name = file.stem
    if file.suffix != ".py" or not name.isidentifier() or keyword.iskeyword(name) or name in _OTHER_KEYS:
        raise InputError(f"{path}: the file's name is the router's; expected a Python file named as in my_router.py")
    if name in _shipped() or name in _GUESTS and _GUESTS[name].origin != str(file):
        raise InputError(
            f"{path}: there is a router {name} already ({routers()[name].origin}); expected another file name"
        )
    kind = read_declaration(source, str(file))
    if kind is None:
        raise InputError(f"{path}: it declares no router; expected ROUTER = RouterSpec(...), see docs/routers.md")
    _GUESTS[name] = RegisteredRouter(name, kind, str(file), guest=True)
    return name


def remove_router(name: str) -> None:
    """Forgets a router that `add_router_file` added."""
    _GUESTS.pop(name, None)
    sys.modules.pop(_guest_module(name), None)


def load_router(name: str) -> ModuleType:
    """The router's whole file, imported; it has a function `build`. Raises InputError where it has not, or there is no
    such router.
    """
    found = registered(name)
    module = _import_guest(found) if found.guest else importlib.import_module(f"{__package__}.routers.{name}")
    if not callable(getattr(module, "build", None)):
        raise InputError(f"{found.origin}: it has no function build; expected build(request), which makes the router")
    return module


def _import_guest(found: RegisteredRouter) -> ModuleType:
    name = _guest_module(found.name)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, found.origin)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # MindSpore finds the source of what it compiles by its module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _guest_module(name: str) -> str:
    return f"locmoe_guest_router_{name}"


@cache
def _shipped() -> Dict[str, RegisteredRouter]:
    found = {}
    for module in pkgutil.iter_modules([str(FOLDER)]):
        file = FOLDER / f"{module.name}.py"
        kind = read_declaration(file.read_text(encoding="utf-8"), str(file)) if file.is_file() else None
        if kind is not None:
            found[module.name] = RegisteredRouter(module.name, kind, str(file))
    return found


# ---- declarations


def read_declaration(source: str, origin: str) -> Optional[RouterSpec]:
    """The `ROUTER` of a file, made from the statements that it needs; None where the file has none.

    Raises InputError: the file is not Python, those statements fail, or `ROUTER` is not what it should be.
    """
    try:
        statements = _needed(ast.parse(source, origin).body, "ROUTER")
        if not statements:
            return None
        names: Dict[str, Any] = {"__name__": f"declaration of {Path(origin).stem}", "__file__": origin}
        exec(compile(ast.Module(statements, []), origin, "exec", dont_inherit=True), names)  # noqa: S102
    except Exception as error:  # whatever the user's code may raise
        raise InputError(
            f"{origin}: its ROUTER cannot be read ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    _check_declaration(names["ROUTER"], origin)
    kind: RouterSpec = names["ROUTER"]
    return kind


def _needed(statements: Iterable[ast.stmt], wanted: str) -> List[ast.stmt]:
    """The statements that bind `wanted`, and those that bind what these refer to, and so on; in their order."""
    statements = list(statements)
    needed, names = set(), [wanted]
    while names:
        name = names.pop()
        for place, statement in enumerate(statements):
            if place not in needed and name in _bound(statement):
                needed.add(place)
                names += [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
    return [statements[place] for place in sorted(needed)]


def _bound(statement: ast.stmt) -> List[str]:
    if isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
        return [statement.name]
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.partition(".")[0] for alias in statement.names]
    targets = (
        statement.targets
        if isinstance(statement, ast.Assign)
        else [statement.target]
        if isinstance(statement, ast.AnnAssign)
        else []
    )
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def _check_declaration(found: Any, origin: str) -> None:
    if not isinstance(found, RouterSpec):
        raise InputError(f"{origin}: ROUTER is a {type(found).__name__}, expected a RouterSpec")
    options = found.options
    if not (isinstance(options, type) and dataclasses.is_dataclass(options) and options.__dataclass_params__.frozen):  # type: ignore
        raise InputError(f"{origin}: ROUTER's options are {options}, expected a frozen dataclass")
    for one in dataclasses.fields(options):
        if "help" not in one.metadata:
            raise InputError(
                f'{origin}: {options.__name__}.{one.name} says nothing of itself, expected key(default, "its meaning")'
            )
    for term in found.terms:
        if term not in TERMS:
            raise InputError(f"{origin}: ROUTER's terms hold {term!r}, expected some of {', '.join(TERMS)}")
