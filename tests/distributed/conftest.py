"""Starts the jobs whose results the tests of this folder look at."""

import json
import os
import secrets
from pathlib import Path

import pytest

from helpers.ports import free_port
from helpers.ranks import LIGHT_MSRUN, run_ranks
from helpers.traffic import CASES, configuration


@pytest.fixture(scope="module", autouse=True)
def light_msrun():
    """What tests of this folder launch finds it, unless they say where Python is to look."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(LIGHT_MSRUN), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def run_job():
    """`run_job(ranks, limit, folder, worker, *arguments)` runs a worker file of this folder as ranks whose runtime
    begins as under the launcher. Files and logs are in `folder`; it may take `limit` seconds.
    """

    def run(ranks, limit, folder, worker, *arguments):
        command = [Path(__file__).with_name(worker), *arguments]
        as_ranks = {
            "MS_ROLE": "MS_WORKER",
            "MS_WORKER_NUM": str(ranks),
            "RANK_ID": [str(rank) for rank in range(ranks)],
            "MS_SCHED_HOST": "127.0.0.1",
            "LOCMOE_MESH_PORT": str(free_port()),
            "LOCMOE_MESH_SECRET": secrets.token_hex(32),
        }
        run_ranks([command] * ranks, limit, folder, **(as_ranks if ranks > 1 else {}))

    return run


@pytest.fixture(scope="session")
def layouts(run_job, tiny_data, tmp_path_factory):
    """The folder that `layouts_worker.py` leaves: of four ranks, of two, and of one process."""
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "cases.json").write_text(json.dumps({name: configuration(name) for name in CASES}))
    for ranks in (4, 2, 1):  # seconds, on slow cores
        run_job(ranks, 1500, folder, "layouts_worker.py", tiny_data, folder, folder / "cases.json")
    return folder
