"""Jobs of two ranks that the launcher starts, as a user's."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from helpers.ranks import LIGHT_MSRUN

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600  # seconds; compilation of two workers on slow cores is most of it
MODEL = {"hidden_size": 16, "num_heads": 2, "dense_layers": 0, "sparse_layers": 1, "sequence_length": 32}


def run_command(folder, *command):
    """Runs a command in `folder` to its end, with this environment's programs."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{LIGHT_MSRUN}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=LIMIT)


def launch_two(folder, **sections):
    """Trains `sections` on two ranks of two nodes, from `config.yaml` in `folder`."""
    given = {"model": MODEL, "parallel": {"expert": 2, "ranks_per_node": 1}, **sections}
    (folder / "config.yaml").write_text(yaml.safe_dump(given))
    script = str(ROOT / "scripts" / "train_msrun.sh")
    return run_command(folder, "bash", script, "--ranks-per-node", "2", str(folder / "config.yaml"))
