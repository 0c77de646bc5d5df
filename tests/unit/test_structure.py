"""The structure that docs/architecture.md describes: what may import what, and what a reader may rely on in every file.

All is read from the source, nothing is imported.
"""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Set, Tuple

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
    ),
    ("pangu_sigma.cli", "pangu_sigma.__main__"),
)
# They run a training step, to measure it or to compile it. Nobody else needs the library of the training loop.
MAY_IMPORT_TRAIN = ("pangu_sigma.train", "pangu_sigma.cli", "pangu_sigma.bench", "pangu_sigma.audit.worker")


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
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types:
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
        return 0  # which holds the version alone
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


def test_packages_hold_a_docstring_only():
    """Importing one module of a package imports nothing else of it."""
    wrong = []
    for module in modules().values():
        if module.path.name == "__init__.py":
            body = module.tree.body[1:] if ast.get_docstring(module.tree) else module.tree.body
            own = [node for node in body if "__version__" not in ast.dump(node)]
            wrong += [module.name] if own or not ast.get_docstring(module.tree) else []
    assert not wrong


@pytest.mark.parametrize("row", ["config", "metrics", "planner", "doctor", "report", "compare", "cli"])
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


# ---- names


def test_a_public_class_name_means_one_thing():
    homes: Dict[str, Set[str]] = defaultdict(set)
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(module.name)
    assert not {name: sorted(found) for name, found in homes.items() if len(found) > 1}
