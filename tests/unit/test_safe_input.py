"""What no file that is read may do: run code. Every module of the program is looked at, as Python's own parser sees
it.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("pangu_sigma", "locmoe_ops", "scripts") for path in (ROOT / folder).rglob("*.py"))
FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "yaml.full_load_all",
    "torch.load",
}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib"}
YAML_LOADERS = {"_StrictLoader"}  # derived from SafeLoader
# Imports the files of routers and dispatchers that the user named on the command line, which no input file can name.
RUNS_WHAT_THE_USER_NAMES = {"locmoe_ops/declared.py": {"found.loader.exec_module"}}


def name_of(node):
    return f"{name_of(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def problems(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (
                f"line {node.lineno}: imports {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES
            )
        if not isinstance(node, ast.Call):
            continue
        name, given = name_of(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        weights_alone = name == "torch.load" and getattr(given.get("weights_only"), "value", False) is True
        if name in FORBIDDEN and not weights_alone:
            yield f"line {node.lineno}: calls {name}"
        if name.endswith("exec_module"):
            yield f"line {node.lineno}: calls {name}"
        if name == "yaml.load" and name_of(given.get("Loader")) not in YAML_LOADERS:
            yield f"line {node.lineno}: loads YAML with another loader than a safe one"
        if name.endswith((".load", "np.load")) and getattr(given.get("allow_pickle"), "value", False):
            yield f"line {node.lineno}: unpickles"
        if name != "shtab.complete" and getattr(given.get("shell"), "value", False):
            yield f"line {node.lineno}: gives a line to the shell"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from marshal import loads",
        "eval(x)",
        "yaml.load(x)",
        "os.system(x)",
        "spec.loader.exec_module(module)",
        "yaml.load(x, Loader=yaml.Loader)",
        "np.load(x, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
    ],
)
def test_what_would_run_code_is_noticed(text):
    assert list(problems(ast.parse(text)))


def test_nothing_that_is_read_is_run():
    found = {
        path.relative_to(ROOT).as_posix(): list(problems(ast.parse(path.read_text(encoding="utf-8"))))
        for path in SOURCES
    }
    for path, calls in RUNS_WHAT_THE_USER_NAMES.items():
        assert {line.rpartition(" ")[2] for line in found.pop(path)} == calls
    assert len(found) > 100 and not {path: lines for path, lines in found.items() if lines}


def test_the_loader_of_yaml_is_a_safe_one():
    import yaml

    from pangu_sigma.config.strict_yaml import _StrictLoader

    assert issubclass(_StrictLoader, yaml.SafeLoader)
    assert not {tag for tag in _StrictLoader.yaml_constructors if tag and "python" in tag}
    assert not [tag for tag in _StrictLoader.yaml_multi_constructors if tag and "python" in tag]
