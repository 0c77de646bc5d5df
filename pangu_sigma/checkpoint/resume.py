"""From which checkpoint a run resumes, and putting it into the network on all ranks alike."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import List, NamedTuple, Optional, Protocol, Tuple

import numpy as np

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.folders import finished
from pangu_sigma.checkpoint.header import changes, check_same_ids, check_same_model, differences
from pangu_sigma.checkpoint.names import CAPACITY_STATE, SHARE_STATE
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.state import StateEntry, Values, rank_location, read_values, set_values, weights
from pangu_sigma.config.schema import Config
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.errors import DamagedCheckpoint
from pangu_sigma.model.capacity_rules import resolve_layout
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.runtime.messages import log
from pangu_sigma.runtime.run_folder import CHECKPOINTS, check_new, check_own, holds_run
from pangu_sigma.runtime.runtime import Runtime


@dataclass(frozen=True)
class ResumeSource:
    """Where a run begins.

    Attributes:
        candidates: checkpoints to resume from, oldest first; empty: start anew.
        may_fall_back: whether an older one may be taken where one is damaged.
        initial: checkpoint whose weights a new run begins with.
    """

    candidates: List[Path]
    may_fall_back: bool = False
    initial: Optional[Path] = None


def find_source(config: Config, data: Optional[PreparedData], for_training: bool = True) -> ResumeSource:
    """What `checkpoint.resume` and `checkpoint.initial` ask for, checked as far as can be without the other ranks.

    Args:
        config: of the run.
        data, for_training: see `CheckpointLoader`.

    Raises:
        InputError: it is unusable, or a new run would overwrite an old one.
    """
    resume, output = config.checkpoint.resume, Path(config.train.output_dir)
    initial = None if config.checkpoint.initial is None else Path(config.checkpoint.initial)
    if for_training:
        _check_output(resume, output)
    if resume is None:
        source = ResumeSource([], initial=initial)
    elif resume == "auto":
        source = ResumeSource([path for _, path in finished(output / CHECKPOINTS)], may_fall_back=True, initial=initial)
    else:
        source = ResumeSource([Path(resume)])
    # Whatever would be refused later is refused before a network is built; all ranks together deal with damage.
    path = source.candidates[-1] if source.candidates else source.initial
    if path is None:
        return source
    try:
        with CheckpointReader.open(path) as reader:
            _check(reader, config, data, for_training and bool(source.candidates))
    except DamagedCheckpoint:
        if not source.may_fall_back:
            raise
    return source


def _check_output(resume: Optional[str], output: Path) -> None:
    """A folder holds one history: a new run, and one that resumes another run's checkpoint, need a folder without
    one.
    """
    root = os.path.realpath(output / CHECKPOINTS)
    if resume == "auto" or (resume is not None and os.path.dirname(os.path.realpath(resume)) == root):
        check_own(output)
    elif resume is not None and holds_run(output):
        raise InputError(
            f"checkpoint.resume: {resume} is no checkpoint of the run that train.output_dir ({output}) holds; expected "
            "one of that run, auto for its newest, or a new train.output_dir"
        )
    else:
        check_new(output)


def _check(reader: CheckpointReader, config: Config, data: Optional[PreparedData], for_training: bool) -> None:
    header = reader.header
    if for_training and header.contents != "training":
        raise InputError(
            f"checkpoint.resume: {reader.folder} holds weights alone; expected one that training wrote, or "
            f"checkpoint.initial={reader.folder} for a new run that begins with these weights"
        )
    if for_training and header.step > config.train.steps:
        raise InputError(
            f"{reader.folder} is at step {header.step}, beyond train.steps ({config.train.steps}); expected a larger "
            "train.steps"
        )
    check_same_model(reader, config)
    if data is not None:
        check_same_ids(reader, data)


def restores_weights(source: ResumeSource, runtime: Runtime) -> bool:
    """Whether `CheckpointLoader.load` will set all weights, or fail: then none need be drawn. Every rank must call it.

    Args:
        source: of `find_source`. runtime: this rank, of which the first one's view of the disk counts.
    """
    if source.initial is not None or not source.may_fall_back:
        return source.initial is not None or bool(source.candidates)
    own = float(runtime.is_first and bool(source.candidates))
    agreed: float = HostSum(runtime.collectives, "checkpoint/source").values(np.array([own]))[0]
    return agreed > 0.0


class ResumePoint(NamedTuple):
    """Where a run stands when it begins: steps done, and the checkpoint that says so (None: anew)."""

    step: int
    checkpoint: Optional[Path]


class Restorable(Protocol):
    """`TrainEngine`, or as much of it as there is."""

    def state(self) -> List[StateEntry]: ...


class CheckpointLoader:
    """Puts a checkpoint into a network, the same one on every rank.

    Ranks read only what they need, and a damaged byte may be found by one of them alone: hence each tells the others
    whether what it read was whole before any sets a parameter. The first rank says which checkpoint is tried; another
    rank's view of the disk may be older.

    Args:
        config, runtime: of this run.
        data: what the network will be fed; None: nothing that was prepared.
        engine: whose state is set.
        for_training: False reads weights alone, from a checkpoint of any kind.
    """

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        data: Optional[PreparedData],
        engine: Restorable,
        for_training: bool = True,
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._data = data
        self._engine = engine
        self._local_experts = rank_location(config, runtime).local_experts
        self._for_training = for_training
        self._sum = HostSum(runtime.collectives, "checkpoint/agreement")

    def load(self, source: ResumeSource) -> ResumePoint:
        """Restores what `source` asks for. Every rank must call it.

        Raises InputError: no candidate is whole, or one does not fit the configuration.
        """
        found = self._load_newest_whole() if source.may_fall_back else None
        if not source.may_fall_back and source.candidates:
            step, values = self._read(source.candidates[0], self._for_training)
            set_values(values)
            found = ResumePoint(step, source.candidates[0])
        if found is None and source.initial is not None:
            _, values = self._read(source.initial, for_training=False)
            set_values(values)
        return found or ResumePoint(0, None)

    def _load_newest_whole(self) -> Optional[ResumePoint]:
        """Tries the run's checkpoints from the newest on; None where there is none at all."""
        root = Path(self._config.train.output_dir) / CHECKPOINTS
        steps, tried = [step for step, _ in finished(root)], 0
        while True:
            own = float(steps.pop() if steps else -1) if self._runtime.is_first else 0.0
            step = round(float(self._sum.values(np.array([own]))[0]))  # the first rank's
            if step < 0:
                break
            tried += 1
            path = root / f"step_{step}"
            problem = self._try(path)
            if problem is None:
                return ResumePoint(step, path)
            self._warn(f"{problem}; trying the checkpoint before it")
        if tried:
            raise InputError(
                f"checkpoint.resume: none of the {tried} checkpoints in {root} is whole; expected one, or a new "
                "train.output_dir to start anew"
            )
        return None

    def _try(self, path: Path) -> Optional[str]:
        """Restores a checkpoint, or says why not; the same on all ranks as to whether."""
        problem: Optional[str] = None
        values: Values = []
        try:
            _, values = self._read(path, self._for_training)
        except DamagedCheckpoint as error:
            problem = str(error)
        failed = round(float(self._sum.values(np.array([0.0 if problem is None else 1.0]))[0]))
        if not failed:
            set_values(values)
            return None
        if problem is not None and not self._runtime.is_first:
            log.warning("%s", problem)
        return problem or f"{path}: damaged, as {failed} other ranks found"

    def _read(self, path: Path, for_training: bool) -> Tuple[int, Values]:
        """Steps done, and the values of what is to be restored, as this rank holds them."""
        with CheckpointReader.open(path) as reader:
            _check(reader, self._config, self._data, for_training)
            if for_training and self._data is not None and self._runtime.is_first:
                layout = resolve_layout(self._config, self._runtime.topology)
                for line in changes(reader, self._config, self._data, layout):
                    self._warn(f"since {path}: {line}")
            state = self._engine.state() if for_training else weights(self._engine.state())
            # What is measured of capacity or share is not there after steps without: it is then measured anew. The
            # loss scale of fp16 begins anew after steps in another precision, and ends with it.
            passed_over = {CAPACITY_STATE, SHARE_STATE}.difference(reader.manifest.tensors)
            if (reader.config().runtime.precision == "fp16") != (self._config.runtime.precision == "fp16"):
                passed_over |= {"loss_scale.scale", "loss_scale.good"}
            state = [entry for entry in state if entry.name not in passed_over]
            why = partial(differences, reader, self._config)
            return reader.header.step, read_values(reader, state, self._local_experts, why)

    def _warn(self, text: str) -> None:
        if self._runtime.is_first:
            log.warning("%s", text)
