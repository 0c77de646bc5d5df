"""Graphs of a small cell, written into folders of any name and read back."""

from pathlib import Path

import numpy as np
import pytest

import mindspore as ms
from mindspore import Parameter, Tensor, nn

from pangu_sigma.runtime.mindir import export_graph, graph_file

# Blanks, signs, letters outside ASCII, a dash first: names that MindSpore's export takes for no path, and some that it
# takes.
NAMES = ["ex b", "a+b=", "中文", "é", "-dash", "a,b;c&", "a'b", 'a"b', "(a)%~", "a\\b", "n" * 250, "a/b c/d"]


class Twice(nn.Cell):
    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(np.full((2, 3), 2.0, np.float32)), name="weight")

    def construct(self, x):
        return self.weight * x


def read_graph(folder):
    return nn.GraphCell(ms.load(str(graph_file(folder / "prefill"))))(Tensor(np.ones((2, 3), np.float32))).asnumpy()


@pytest.mark.parametrize(
    "name, way", [*((name, "whole path") for name in NAMES), ("ex b", "relative"), ("ex b", "through a link")]
)
def test_a_graph_goes_into_a_folder_of_any_name(tmp_path, monkeypatch, name, way):
    """Also where temporary files go to such a folder."""
    folder = tmp_path / name
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    given = {"whole path": folder, "relative": Path(name), "through a link": tmp_path / "link"}[way]
    export_graph(Twice(), [Tensor(np.ones((2, 3), np.float32))], given / "prefill")
    assert [path.name for path in folder.iterdir()] == ["prefill.mindir"]
    np.testing.assert_array_equal(read_graph(given), np.full((2, 3), 2.0))


def test_a_graph_whose_weights_lie_beside_it_is_read(tmp_path, monkeypatch):
    """As MindSpore writes graphs of more than 1 GB."""
    monkeypatch.setattr("mindspore.train.serialization.TOTAL_SAVE", 0)
    folder = tmp_path / "ex b"
    folder.mkdir()
    export_graph(Twice(), [Tensor(np.ones((2, 3), np.float32))], folder / "prefill")
    assert not (folder / "prefill.mindir").exists()
    np.testing.assert_array_equal(read_graph(folder), np.full((2, 3), 2.0))
