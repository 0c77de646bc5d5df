"""Small networks (those of the model's tests)."""

import pytest

import mindspore as ms


@pytest.fixture(autouse=True)
def graph_mode() -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
