"""What the tests of several packages share."""

from types import ModuleType

import pytest

from helpers import networks as _networks
from helpers import numpy_model as _numpy_model
from helpers.runs import made_up_cosines, made_up_records, make_plan, whole_plan, write_plan, write_run

__all__ = ["made_up_cosines", "made_up_records", "make_plan", "whole_plan", "write_plan", "write_run"]


@pytest.fixture(scope="session")
def networks() -> ModuleType:
    return _networks


@pytest.fixture(scope="session")
def numpy_model() -> ModuleType:
    return _numpy_model
