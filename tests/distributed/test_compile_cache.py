"""Kept graphs on several ranks on CPU, whose collectives are Python functions that graphs name."""

import json
import re

import pytest

from helpers.launched import launch_two


@pytest.fixture(scope="module")
def launch(tiny_data, tmp_path_factory):
    """Trains two ranks three steps with kept graphs; returns losses and norms, and how many graphs were taken and
    added by the first rank.
    """
    root = tmp_path_factory.mktemp("kept")

    folder = root / "folder"

    def run(name):
        place = root / name
        place.mkdir()
        result = launch_two(
            place,
            moe={"num_experts": 4, "num_groups": 2, "router": {"type": "locmoe"}},
            data={"path": str(tiny_data)},
            optimizer={"warmup_steps": 1},
            runtime={"compile_cache": str(folder)},
            train={"steps": 3, "global_batch_size": 4, "eval_rows": 0, "output_dir": str(place / "run")},
        )
        assert result.returncode == 0, result.stdout + result.stderr
        lines = map(json.loads, (place / "run" / "metrics.jsonl").read_text().splitlines())
        counts = re.search(r"compiled graphs: (\d+) from .*, (\d+) added", result.stdout + result.stderr)
        numbers = [{k: v for k, v in line.items() if k.startswith(("loss/", "optim/", "moe/"))} for line in lines]
        return numbers, tuple(map(int, counts.groups()))

    run.folder = folder
    return run


def test_ranks_take_their_own_graphs_or_compile_together(launch):
    """The same numbers with an empty folder, with a full one, and with one from which graphs of some rank are gone:
    there all ranks compile these. Without a folder: tests/end_to_end/test_compile_cache.py.
    """
    cold, (taken, added) = launch("cold")
    files = sorted(launch.folder.iterdir())
    assert taken == 0 and len(files) == 2 * added >= 2
    warm, counts = launch("warm")
    assert counts == (added, 0) and sorted(launch.folder.iterdir()) == files
    assert warm == cold
    for path in files[::2]:
        path.unlink()
    partly, _ = launch("partly")
    assert partly == cold
