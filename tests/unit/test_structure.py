"""The structure that docs/architecture.md describes: what may import what, and what a reader may rely on in every file.

All is read from the source, nothing is imported.
"""

import ast
import io
import re
import tokenize
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Set, Tuple, Union

import pytest

ROOT = Path(__file__).parents[2]
# The bottom first: a module imports from its own row and from those before it.
ROWS: Tuple[Tuple[str, ...], ...] = (
    ("locmoe_ops",),
    ("pangu_sigma.errors",),
    ("pangu_sigma.config", "pangu_sigma.runtime", "pangu_sigma.metrics"),
    ("pangu_sigma.model", "pangu_sigma.checkpoint", "pangu_sigma.data"),
    (
        "pangu_sigma.train",
        "pangu_sigma.inference",
        "pangu_sigma.evaluation",
        "pangu_sigma.audit",
        "pangu_sigma.planner",
        "pangu_sigma.doctor",
        "pangu_sigma.bench",
        "pangu_sigma.report",
        "pangu_sigma.compare",
        "pangu_sigma.launcher",
    ),
    ("pangu_sigma.cli", "pangu_sigma.api", "pangu_sigma.__main__"),
)
# What users import from. What they offer stands above them, and is imported when it is asked for (PEP 562).
PUBLIC = ("locmoe_ops", "pangu_sigma")
# They run a training step, to measure it or to compile it. Nobody else needs the library of the training loop.
MAY_IMPORT_TRAIN = ("pangu_sigma.train", "pangu_sigma.cli", "pangu_sigma.bench", "pangu_sigma.audit.worker")

DOCUMENTED = 0.9  # of the arguments
SHAPED = ("locmoe_ops.dispatch", "locmoe_ops.routers", "pangu_sigma.model", "pangu_sigma.inference")
SHAPED_CALLS = 0.9  # of the calls there
METHODS = ("reshape", "transpose", "expand_dims", "tile", "view", "permute")
SHAPE = re.compile(r"<-|[(\[][A-Za-z0-9_*+/ -]+(, ?[A-Za-z0-9_*+/ -]+)+[)\]]")


class Module(NamedTuple):
    """Attributes: name (dotted; a package's is that of its folder); path; tree (the parsed source)."""

    name: str
    path: Path
    tree: ast.Module


@cache
def modules() -> Dict[str, Module]:
    """All modules of both packages, by name."""
    found = {}
    for package in ("locmoe_ops", "pangu_sigma"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return found


@cache
def imports(name: str, lazy: bool, types: bool) -> Tuple[str, ...]:
    """What a module imports: modules by name, of other projects too.

    Args:
        name: the importing module.
        lazy: also what is imported inside functions.
        types: also what is imported for annotations alone (`if TYPE_CHECKING:`).
    """
    module = modules()[name]
    package = name if module.path.name == "__init__.py" else name.rpartition(".")[0]
    waiting: List[ast.AST] = [module.tree]
    found: List[str] = []
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.Lambda)) and not lazy:
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and (not types or name in PUBLIC):
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            whole = [f"{base}.{alias.name}" for alias in node.names]
            found += [one if one in modules() else base for one in whole]
        else:
            waiting.extend(child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))
    return tuple(dict.fromkeys(found))


def wrong_imports(is_wrong: Callable[[str, str], bool]) -> List[str]:
    """All imports, of whatever kind, for which `is_wrong(importing, imported)`."""
    return [
        f"{name} imports {target}"
        for name in modules()
        for target in imports(name, lazy=True, types=True)
        if is_wrong(name, target)
    ]


def is_in(name: str, packages: Tuple[str, ...]) -> bool:
    return f"{name}.".startswith(tuple(f"{package}." for package in packages))


def row_of(name: str) -> int:
    """The row of ROWS that a module stands in."""
    if name == "pangu_sigma":
        return 0  # which holds the version, and names of what is imported later
    rows = [row for row, packages in enumerate(ROWS) if is_in(name, packages)]
    assert len(rows) == 1, f"{name} stands in {len(rows)} rows"
    return rows[0]


# ---- what imports what


def test_imports_point_down():
    assert not wrong_imports(lambda name, target: target in modules() and row_of(target) > row_of(name))


def test_the_layer_stands_without_the_program():
    assert not wrong_imports(lambda name, target: is_in(name, ("locmoe_ops",)) and is_in(target, ("pangu_sigma",)))


def test_nobody_takes_training_for_a_library():
    assert not wrong_imports(
        lambda name, target: is_in(target, ("pangu_sigma.train",)) and not is_in(name, MAY_IMPORT_TRAIN)
    )


def test_only_commands_import_what_users_import_from():
    """`pangu_sigma` names, for type checkers, what stands far above: a module below that imports it closes a circle."""
    assert not wrong_imports(lambda name, target: target == "pangu_sigma" and not is_in(name, ("pangu_sigma.cli",)))


def test_packages_hold_a_docstring_only():
    """Importing one module of a package imports nothing else of it. (`pangu_sigma.train` can be called, too.)"""
    wrong = []
    for module in modules().values():
        if module.path.name == "__init__.py" and module.name not in (*PUBLIC, "pangu_sigma.train"):
            body = module.tree.body[1:] if ast.get_docstring(module.tree) else module.tree.body
            own = [node for node in body if "__version__" not in ast.dump(node)]
            wrong += [module.name] if own or not ast.get_docstring(module.tree) else []
    assert not wrong
    light = {name for package in (*PUBLIC, "pangu_sigma.train") for name in imports(package, lazy=False, types=False)}
    assert light <= {"importlib", "typing", "sys", "types"}


@pytest.mark.parametrize("row", ["config", "metrics", "planner", "doctor", "report", "compare", "launcher", "cli"])
def test_mindspore_is_not_imported_by(row):
    """By no module of these packages, nor by one that they import as they are imported themselves.

    tests/unit/pangu_sigma/cli/test_main.py runs commands where MindSpore cannot be imported.
    """
    reached: Dict[str, str] = {name: name for name in modules() if f"{name}.".startswith(f"pangu_sigma.{row}.")}
    waiting, wrong = list(reached), []
    assert waiting
    while waiting:
        name = waiting.pop()
        for target in imports(name, lazy=False, types=False):
            if target.split(".")[0] == "mindspore":
                wrong.append(reached[name])
            parts = target.split(".")
            for end in range(1, len(parts) + 1):  # packages are imported before their modules
                part = ".".join(parts[:end])
                if part in modules() and part not in reached:
                    reached[part] = f"{reached[name]} > {part}"
                    waiting.append(part)
    assert not wrong


def test_no_module_imports_itself_by_a_detour():
    """Not inside functions, and not for annotations alone either: a module is understood after those below it."""
    below = {name: {one for one in imports(name, True, True) if one in modules()} - {name} for name in modules()}
    waiting = set(below)
    while True:  # take away what needs nothing of what is left, until nothing is left, or a circle and what needs it
        free = {name for name in waiting if not below[name] & waiting}
        if not free:
            break
        waiting -= free
    needed = {name for name in waiting if any(name in below[other] for other in waiting)}
    assert not {name: sorted(below[name] & waiting) for name in sorted(needed)}


# ---- what a reader may rely on


def test_a_public_class_name_means_one_thing():
    homes: Dict[str, Set[str]] = defaultdict(set)
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(module.name)
    assert not {name: sorted(found) for name, found in homes.items() if len(found) > 1}


def functions_of(owner: Union[ast.Module, ast.ClassDef]) -> List[ast.FunctionDef]:
    return [node for node in owner.body if isinstance(node, ast.FunctionDef)]


def arguments_of(function: ast.FunctionDef) -> List[str]:
    """Names of all arguments but `self`, `cls` and starred ones."""
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def test_a_constructor_takes_at_most_six_arguments():
    """What belongs together is a small frozen dataclass, passed whole."""
    wrong = []
    for module in modules().values():
        for owner in ast.walk(module.tree):
            for function in functions_of(owner) if isinstance(owner, ast.ClassDef) else ():
                if function.name == "__init__" and len(arguments_of(function)) > 6:
                    wrong.append(f"{module.name}.{owner.name}: {len(arguments_of(function))} arguments")
    assert not wrong


def test_docstrings_name_the_arguments():
    """Of public functions and methods of three arguments or more; those of a constructor, and of a cell's `construct`,
    may stand in the class's docstring. A `bprop` takes what MindSpore says: those of `construct`, their result and its
    gradient.
    """
    total, missing = 0, []
    for module in modules().values():
        classes = [node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
        owners: List[Union[ast.Module, ast.ClassDef]] = [module.tree, *classes]
        for owner in owners:
            of_class = "" if isinstance(owner, ast.Module) else owner.name
            for function in functions_of(owner):
                names = arguments_of(function)
                private = function.name.startswith("_") and function.name != "__init__"
                if private or function.name == "bprop" or of_class.startswith("_") or len(names) < 3:
                    continue
                text = ast.get_docstring(function) or ""
                if function.name in ("__init__", "construct"):
                    text += ast.get_docstring(owner) or ""
                total += len(names)
                missing += [
                    f"{module.name}:{function.lineno} {of_class}.{function.name}: {name}"
                    for name in names
                    if not re.search(rf"\b{re.escape(name)}\b", text)
                ]
    assert len(missing) <= (1 - DOCUMENTED) * total, f"{len(missing)} of {total}: {missing}"


def shaped_lines(source: str) -> Set[int]:
    """Numbers of the lines that end in a comment on shapes, such as `# (P, L, C, d) <- (M, d)`, or are one."""
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and SHAPE.search(token.string):
            found.add(token.start[0])
    return found


def test_what_changes_a_shape_says_its_shapes():
    """On a line of the statement, or just above it."""
    total, missing = 0, []
    for module in modules().values():
        if not is_in(module.name, SHAPED):
            continue
        source = module.path.read_text(encoding="utf-8")
        shaped, lines = shaped_lines(source), source.splitlines()
        for statement in ast.walk(module.tree):
            if not isinstance(statement, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.Expr)):
                continue
            calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call) and changes_shape(node)]
            first = statement.lineno
            while first > 1 and lines[first - 2].lstrip().startswith("#"):
                first -= 1
            own = shaped & set(range(first, (statement.end_lineno or first) + 1))
            total += len(calls)
            missing += [f"{module.name}:{call.lineno}" for call in calls] if not own else []
    assert len(missing) <= (1 - SHAPED_CALLS) * total, f"{len(missing)} of {total}: {missing}"


def changes_shape(call: ast.Call) -> bool:
    """`x.reshape(...)`, `ops.concat(...)` and their like."""
    function = call.func
    if not isinstance(function, ast.Attribute):
        return False
    module = isinstance(function.value, ast.Name) and function.value.id in ("ops", "mint")
    return function.attr in METHODS or (module and function.attr in ("gather", "concat"))
