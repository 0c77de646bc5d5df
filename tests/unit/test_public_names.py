"""What `from pangu_sigma import ...` and `from locmoe_ops import ...` give, and that each package alone is light."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("pangu_sigma", "locmoe_ops")
EXPECTED = {"load_config", "prepare", "train", "evaluate", "Generator"}, {"build_moe", "LocMoERouter", "Topology"}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_alone_imports_nothing_else(name):
    program = f"import sys, {name}; print(*(one for one in sys.modules if one.partition('.')[0] in sys.argv))"
    heavy = ("mindspore", "numpy", "yaml", *PACKAGES)
    done = subprocess.run([sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [name]


@pytest.mark.parametrize(("name", "expected"), [*zip(PACKAGES, EXPECTED)])
def test_every_public_name_is_there_and_typed(name, expected):
    """Each can be imported, is the thing of that name, and a type checker is told where it is from."""
    package = importlib.import_module(name)
    assert expected <= set(package.__all__) <= set(dir(package)) and sorted(package.__all__) == package.__all__
    for public in package.__all__:
        assert getattr(package, public).__name__ in (public, f"{name}.{public}")
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    told = {alias.name: node.module for node in typed.body for alias in node.names}
    assert set(told) == set(package.__all__)
    for public, module in told.items():
        if public != "train":
            assert getattr(importlib.import_module(module), public) is getattr(package, public)


@pytest.mark.parametrize("first", ["import pangu_sigma.train.divergence", "from pangu_sigma import train", "pass"])
def test_train_can_be_called_whoever_imported_the_package_of_that_name(first):
    """`pangu_sigma.train` is a package, too, and stays one."""
    program = (
        f"{first}\n"
        "import sys, types, pangu_sigma\n"
        "from pangu_sigma import train\n"
        "job = types.ModuleType('pangu_sigma.train.job')\n"
        "job.train = lambda config: ('trained', config)\n"
        "sys.modules['pangu_sigma.train.job'] = job\n"
        "assert train(7) == pangu_sigma.train(config=7) == ('trained', 7)\n"
        "import pangu_sigma.train.divergence as inner\n"
        "assert train.divergence is inner is pangu_sigma.train.divergence\n"
        "assert 'mindspore' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", PACKAGES)
def test_what_there_is_not(name):
    with pytest.raises(ImportError, match=f"cannot import name 'nothing' from '{name}'"):
        exec(f"from {name} import nothing")
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = importlib.import_module(name).nothing
