"""Checkpoints that are not what was written: read as a job that resumes reads them, and by `pangu-sigma ckpt verify`.

One process builds the network once and writes checkpoints of two steps, four shards each; a case spoils one file of a
copy of the newer step, then takes the run up again (`checkpoint.resume: auto`) into the same network. What the network
holds then is compared with what was written.
"""

import contextlib
import io
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any, Callable, Dict

import numpy as np

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.writer import CheckpointWriter, Retention, WritingJob
from pangu_sigma.cli.main import main
from pangu_sigma.config.load import load_config

from . import clock
from .job import make_config
from .ledger import Ledger, Outcome, draw

COUNT = 200
OLD, NEW = 2, 4  # steps
SHARDS = 4


def flip(folder: Path, random: Random) -> str:
    path = random.choice(sorted(folder.iterdir()))
    content = bytearray(path.read_bytes())
    place, bit = random.randrange(len(content)), random.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} of {path.name}"


def cut(folder: Path, random: Random) -> str:
    path = random.choice(sorted(folder.iterdir()))
    length = random.randrange(path.stat().st_size)
    os.truncate(path, length)
    return f"{path.name} cut to {length} bytes"


def remove(folder: Path, random: Random) -> str:
    path = random.choice(sorted(folder.iterdir()))
    path.unlink()
    return f"{path.name} removed"


def swap(folder: Path, random: Random) -> str:
    """Two shards of the checkpoint exchanged, or one exchanged with that of the older step."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    left = folder / random.choice(names)
    other = random.choice(["same", "older"])
    right = (
        folder / random.choice([name for name in names if name != left.name])
        if other == "same"
        else folder.with_name(f"step_{OLD}") / left.name
    )
    content = right.read_bytes()
    if other == "same":
        right.write_bytes(left.read_bytes())
    left.write_bytes(content)
    return f"{left.name} with {right.parent.name}/{right.name}"


KINDS: Dict[str, Callable[[Path, Random], str]] = {
    "checkpoint file: a bit flipped": flip,
    "checkpoint file: cut off": cut,
    "checkpoint file: missing": remove,
    "checkpoint file: shards swapped": swap,
}


class Network:
    """A network with its training state, and everything that resuming needs."""

    def __init__(self, folder: Path, run: Path) -> None:
        from pangu_sigma.checkpoint.state import rank_location
        from pangu_sigma.data.dataset import PreparedData
        from pangu_sigma.data.vocabulary import vocabulary
        from pangu_sigma.runtime.runtime import start_runtime
        from pangu_sigma.train.engine import TrainEngine

        self.config = load_config(
            make_config(folder), [f"train.output_dir={run}", "train.steps=100", "checkpoint.resume=auto"]
        )
        self.data = PreparedData.open(self.config.data.path)
        words = vocabulary(self.config, self.data)
        self.runtime = start_runtime(self.config)
        self.parts = TrainEngine(self.config, self.runtime, words)
        self.place, self.vocab_size = rank_location(self.config, self.runtime), words.vocab_size

    def values(self) -> Dict[str, np.ndarray]:
        return {entry.name: entry.get().copy() for entry in self.parts.state()}

    def fill(self, seed: int) -> None:
        """Draws another value for everything, so that no two states have a tensor in common."""
        generator = np.random.default_rng(seed)
        for entry in self.parts.state():
            value = entry.get()
            whole = value.dtype.kind in "iu" or not value.ndim
            drawn = generator.integers(1, 1000, value.shape) if whole else generator.standard_normal(value.shape)
            entry.set(np.asarray(drawn, value.dtype))

    def save(self, root: Path, step: int) -> None:
        from pangu_sigma.checkpoint.header import training_header
        from pangu_sigma.checkpoint.state import local_tensors
        from pangu_sigma.model.capacity_rules import resolve_layout

        state = self.parts.state()
        header = training_header(
            self.config, resolve_layout(self.config, self.runtime.topology), self.data, self.vocab_size, step, state
        )
        with CheckpointWriter(root, WritingJob(0, [0], 30.0, lambda: None), Retention(), False) as writer:
            writer.save(header, local_tensors(state, self.place))

    def resume(self) -> Any:
        from pangu_sigma.checkpoint.resume import CheckpointLoader, find_source

        return CheckpointLoader(self.config, self.runtime, self.data, self.parts).load(
            find_source(self.config, self.data)
        )


def run(folder: Path, ledger: Ledger, count: int, seed: int) -> None:
    todo = sorted(set(range(count)) - ledger.done("corruptions"))
    if not todo:
        return
    origin, run_folder = folder / "corruptions" / "origin", folder / "corruptions" / "run"
    shutil.rmtree(folder / "corruptions", ignore_errors=True)
    network, written = Network(folder, run_folder), {}
    for step in (OLD, NEW):
        network.fill(seed + step)
        network.save(origin / "one_shard", step)
        written[step] = network.values()
        with contextlib.redirect_stdout(io.StringIO()):
            source, target = origin / "one_shard" / f"step_{step}", origin / "checkpoints" / f"step_{step}"
            assert main(["ckpt", "reshard", str(source), str(target), "--shards", str(SHARDS)]) == 0
    for number in todo:
        shutil.rmtree(run_folder, ignore_errors=True)
        shutil.copytree(origin / "checkpoints", run_folder / "checkpoints")
        ledger.note(one(network, written, run_folder, number, seed))


def one(
    network: Network, written: Dict[int, Dict[str, np.ndarray]], run_folder: Path, number: int, seed: int
) -> Outcome:
    kind = list(KINDS)[number % len(KINDS)]
    newer = run_folder / "checkpoints" / f"step_{NEW}"
    detail = KINDS[kind](newer, draw("corruptions", number, seed))
    network.fill(seed)  # nothing of an earlier case can pass for what was read
    started, said, step = clock.now(), io.StringIO(), -1
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            step = network.resume().step
        except InputError as error:
            detail += f"; ended: {error}"
        seconds = clock.now() - started
        verified = main(["ckpt", "verify", str(newer)]) == 0
        older_whole = main(["ckpt", "verify", str(newer.with_name(f"step_{OLD}"))]) == 0
    found = network.values()
    right = step in written and all(np.array_equal(found[name], value) for name, value in written[step].items())
    warned = "warning: " in said.getvalue() and f"step_{NEW}" in said.getvalue()
    if step == NEW and right and verified:
        kind += ", where nothing is read"
    return Outcome(
        "corruptions",
        number,
        kind,
        detected=(step != NEW and (warned or step < 0) and not verified),
        recovered=right,
        lost=(step > 0 and not right) or not older_whole or (verified and step != NEW),
        seconds=seconds,
        detail=detail,
    )
