"""Small networks (those of the model's tests)."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mindspore as ms

MODEL_TESTS = Path(__file__).parents[1] / "model"


def _load(stem: str) -> ModuleType:
    """A helper module of the model's tests. MindSpore reads the source of compiled cells by their module's name."""
    name = f"pangu_sigma_tests_{stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, MODEL_TESTS / f"{stem}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def networks() -> ModuleType:
    return _load("networks")


@pytest.fixture(scope="session")
def numpy_model() -> ModuleType:
    return _load("numpy_model")


@pytest.fixture(autouse=True)
def graph_mode() -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
