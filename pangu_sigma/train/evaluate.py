"""`pangu-sigma eval`: a checkpoint's perplexity on the validation rows, in one process."""

from contextlib import closing
from dataclasses import replace
from typing import Dict

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.errors import DamagedCheckpoint
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.config.schema import Config
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.loader import create_loader
from pangu_sigma.model.slots import resolve_layout
from pangu_sigma.train.build import TrainingParts, vocabulary
from pangu_sigma.train.metrics import HostSum
from pangu_sigma.train.resume import Restorer, Source, Start, find_source
from pangu_sigma.train.run import place_of
from pangu_sigma.train.runtime import start_runtime
from pangu_sigma.train.validation import Validation


def on_one_process(config: Config) -> Config:
    """The configuration of a job of any size, for one process: the checkpoint says which cluster homes and locality refer to."""
    return replace(config, parallel=replace(config.parallel, expert=1, tensor=1, ranks_per_node=None),
                   checkpoint=replace(config.checkpoint, initial=None))  # where that run once began


def evaluate(config: Config) -> int:
    """Prints perplexity and loss of the checkpoint that `checkpoint.resume` names, and returns 0.

    Raises:
        InputError: no checkpoint is named or found, it does not fit the configuration, or there are no validation rows.
    """
    if config.checkpoint.resume is None:
        raise InputError("checkpoint.resume is null; eval expected auto (the newest of train.output_dir) or a checkpoint folder")
    data = PreparedData.open(config.data.path)
    source = find_source(config, data, for_training=False)
    if not source.candidates:
        raise InputError(f"train.output_dir: {config.train.output_dir} holds no checkpoint; expected one for checkpoint.resume=auto")
    config = _of_trained_cluster(config, source)
    words = vocabulary(config, data)
    with start_runtime(config) as runtime, closing(create_loader(config, data, resolve_layout(config, runtime.topology), 0, 1)) as loader:
        parts = TrainingParts(config, runtime, words)
        start = Restorer(config, runtime, data, parts, place_of(config, runtime), for_training=False).start(source)
        found = Validation(parts, runtime, loader.validation(), HostSum(runtime.collectives, "metrics/counters")).measure()
    if not found:
        raise InputError(f"train.eval_rows is {config.train.eval_rows}; eval expected at least one row")
    _print(start, found)
    return 0


def _of_trained_cluster(config: Config, source: Source) -> Config:
    """With the layout that the newest checkpoint names, if the configuration names none."""
    if config.moe.layout is not None:
        return config
    for path in reversed(source.candidates):
        try:
            with CheckpointReader.open(path) as reader:
                trained = reader.config().moe.layout
        except DamagedCheckpoint:
            continue  # told when it is tried
        return replace(config, moe=replace(config.moe, layout=trained))
    return config


def _print(start: Start, found: Dict[str, float]) -> None:
    print(f"{start.checkpoint}: step {start.step}")
    for name, prefix in (("as trained", "valid/"), ("local term off", "valid/local_term_off/")):
        if f"{prefix}loss" in found:
            print(f"{name:<16} perplexity {found[prefix + 'perplexity']:10.2f}   loss {found[prefix + 'loss']:.4f} nats a token")
