"""MindIR files in folders of any name."""

import re
import tempfile
from pathlib import Path
from typing import Sequence

import mindspore as ms
from mindspore import Tensor, nn

# What mindspore.export takes for a path; see its check_file_name_by_regular.
_PLAIN = re.compile(r"[0-9A-Za-z@_.:/\\-]+")


def export_graph(cell: nn.Cell, inputs: Sequence[Tensor], path: Path) -> None:
    """Writes the graph of a cell as MindIR.

    MindSpore refuses paths with blanks, signs or letters outside ASCII, but follows a link with a plain name to where
    they lead.

    Args:
        cell: what is compiled.
        inputs: the graph takes tensors of these shapes and dtypes.
        path: the file's, without `.mindir`; with more than 1 GB of weights see `graph_file`.
    """
    # TMPDIR may have no plain name, too.
    base = next(folder for folder in (tempfile.gettempdir(), "/tmp") if _PLAIN.fullmatch(folder))
    with tempfile.TemporaryDirectory(prefix="pangu-sigma-", dir=base) as folder:
        link = Path(folder) / "export"
        link.symlink_to(path.parent.absolute(), target_is_directory=True)
        ms.export(cell, *inputs, file_name=str(link / path.name), file_format="MINDIR")


def graph_file(path: Path) -> Path:
    """The file that `export_graph` wrote for `path`. Weights of more than 1 GB are in a folder of their own, and
    MindSpore gives the file another name.
    """
    whole = path.with_name(f"{path.name}.mindir")
    return whole if whole.exists() else path.with_name(f"{path.name}_graph.mindir")
