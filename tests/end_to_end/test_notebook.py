"""The tutorial's notebook, run from its first cell to its last, in a smaller size."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parents[2]
# A model of nearly no size, and no graph that is compiled: what is tried is that each cell follows from those before.
SMALLER = {
    "cp -r pangu_sigma locmoe_ops mine/code/": "cp -r locmoe_ops mine/code/",
    "hidden_size: 64": "hidden_size: 32",
    "sequence_length: 128": "sequence_length: 32",
    "warmup_steps: 20": "warmup_steps: 1",
    "  steps: 60": "  steps: 4",
    "global_batch_size: 8": "global_batch_size: 4",
    "eval_interval: 20": "eval_interval: 2",
    "eval_rows: 16": "eval_rows: 4",
    "  interval: 30": "  interval: 2\nruntime: {mode: pynative}",
    "  hash: {moe.router.type: hash}\n": "",
    "warmup_steps_ignored: 5": "warmup_steps_ignored: 1",
    "train.steps=10 \\\n    --set optimizer.warmup_steps=2": "train.steps=2 \\\n    --set optimizer.warmup_steps=1",
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after its run, and where it ran: a checkout of links."""
    place = tmp_path_factory.mktemp("notebook")
    (place / "docs").mkdir()
    for name in ("README.md", "setup.py", "pangu_sigma", "locmoe_ops"):
        (place / name).symlink_to(REPOSITORY / name)
    for name in ("tutorial.md", "metrics.md"):
        shutil.copy(REPOSITORY / "docs" / name, place / "docs")
    text = (REPOSITORY / "docs" / "tutorial.ipynb").read_text(encoding="utf-8")
    for found, smaller in SMALLER.items():
        found, smaller = (json.dumps(part, ensure_ascii=False)[1:-1] for part in (found, smaller))
        assert text.count(found) == 1, f"{found}: in the notebook {text.count(found)} times, expected once"
        text = text.replace(found, smaller)
    notebook = nbformat.reads(text, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": place / "docs"}}
    ).execute()
    return notebook, place


def test_every_cell_ran(executed):
    """nbclient raises at a cell that fails; a cell of bash fails with its first command that does."""
    notebook, _ = executed
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize(
    "file",
    [
        "mine/code/locmoe_ops/errors.py",
        "data/mine/manifest.json",
        "runs/mine/locmoe/metrics.jsonl",
        "runs/mine/locmoe/summary.json",
        "runs/compare/compare/report.html",
        "runs/mine/prose/config.yaml",
        "runs/mine/prose_more/summary.json",
    ],
)
def test_what_the_tutorial_promises_is_there(executed, file):
    assert (executed[1] / file).is_file()
