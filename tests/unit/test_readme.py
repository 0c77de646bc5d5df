"""The README is short and leads to every page; the layer's example runs as it stands in its page."""

import importlib
import re
from pathlib import Path

import numpy as np

import mindspore as ms
from mindspore import Tensor, ops

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_it_fits_a_screen_or_two():
    lines = README.splitlines()
    assert len(lines) <= 130
    assert [line for line in lines if len(line) > 90] == []


def test_it_leads_to_every_page():
    """From docs, those in English; and to what stands beside it."""
    linked = set(re.findall(r"\]\(([^)#]+)", README))
    pages = {f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")}
    assert pages - linked == set()
    assert {"LICENSE", "CITATION.cff", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "README.zh.md"} <= linked


def test_layer_example(tmp_path, monkeypatch):
    """MindSpore reads the source of what it compiles, so the block becomes a file; it must train: a gradient reaches
    x.
    """
    page = (REPOSITORY / "docs" / "layer.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "layer_example.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("layer_example")

    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    network = module.Network()
    generator = np.random.default_rng(0)
    x = Tensor(generator.standard_normal((64, 32)).astype(np.float32))
    ids = Tensor(generator.integers(0, 100, 64).astype(np.int32))
    y, losses = network(x, ids)
    assert y.shape == (64, 32) and float(losses.asnumpy()) > 0
    gradient = ms.grad(network)(x, ids)
    assert np.abs(gradient.asnumpy() - 1).max() > 1e-3  # the residual alone would give ones
    assert ops.isfinite(gradient).all()
