"""The README's example runs as it stands there."""

import importlib
import re
from pathlib import Path

import numpy as np

import mindspore as ms
from mindspore import Tensor, ops

README = Path(__file__).resolve().parents[2] / "README.md"


def test_layer_example(tmp_path, monkeypatch):
    """MindSpore reads the source of what it compiles, so the block becomes a file; it must train: a gradient reaches
    x.
    """
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "readme_example.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("readme_example")

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
