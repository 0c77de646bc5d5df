"""Checks of schedule, checkpoints and folders of a run. All raise `InputError` naming keys and values."""

import os
from dataclasses import fields
from pathlib import Path
from typing import Optional, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.config.derived import has_experts, last_step, num_blocks
from pangu_sigma.config.schema import Config
from pangu_sigma.config.schema_run import ClusterConfig


def check_schedule(config: Config) -> None:
    """Checks steps, profile and learning rates. Raises InputError, which names the keys and values that do not fit."""
    optimizer, train = config.optimizer, config.train
    if train.stop_after is not None and train.stop_after > train.steps:
        raise InputError(
            f"train.stop_after ({train.stop_after}) is beyond train.steps ({train.steps}); expected at most "
            f"{train.steps}"
        )
    if optimizer.expert_state != "device" and not has_experts(config):
        raise InputError(
            f"optimizer.expert_state is {optimizer.expert_state} in a network without experts (model.sparse_layers 0, "
            "model.sparse_query_layer false); expected device"
        )
    _check_profile(train.profile, last_step(config))
    _check_reading(config)
    if optimizer.schedule == "constant":
        if optimizer.decay_steps is not None:
            raise InputError(
                f"optimizer.decay_steps is {optimizer.decay_steps} with optimizer.schedule constant, "
                "which has no decay; expected null"
            )
        return
    name = "train.steps" if optimizer.decay_steps is None else "optimizer.decay_steps"
    decay = train.steps if optimizer.decay_steps is None else optimizer.decay_steps
    if optimizer.warmup_steps > decay:
        raise InputError(
            f"optimizer.warmup_steps ({optimizer.warmup_steps}) is beyond the end of decay, "
            f"{name} ({decay}); expected at most {decay}"
        )
    if optimizer.end_learning_rate > optimizer.learning_rate:
        raise InputError(
            f"optimizer.end_learning_rate ({optimizer.end_learning_rate}) exceeds "
            f"optimizer.learning_rate ({optimizer.learning_rate}); expected at most as much"
        )


def _check_reading(config: Config) -> None:
    found = f"train.read_results is {config.train.read_results}"
    if config.train.read_results == "each_step":
        return
    if config.optimizer.expert_state != "device":
        raise InputError(
            f"{found} with optimizer.expert_state {config.optimizer.expert_state}, where the host waits for every "
            "step's gradients; expected each_step"
        )
    if config.train.read_results == "log_interval" and config.train.log_interval == 1:
        raise InputError(f"{found} with train.log_interval 1, which is every step; expected each_step")


def _check_profile(profile: Optional[Tuple[int, ...]], last: int) -> None:
    if profile is None:
        return
    if len(profile) != 2 or profile[0] > profile[1]:
        raise InputError(
            f"train.profile is {list(profile)}, expected the first and the last step to profile, as in [20, 24]"
        )
    if profile[1] > last:
        raise InputError(
            f"train.profile ({list(profile)}) goes beyond the last step ({last}); expected steps up to {last}"
        )


def check_recompute(config: Config) -> None:
    """Checks `train.recompute`. Raises InputError: there are no such layers, or nothing that keeps what is computed."""
    asked, layers = config.train.recompute, num_blocks(config) + 1
    if isinstance(asked, int) and asked > layers:
        raise InputError(
            f"train.recompute is {asked} in a network of {layers} layers (model.dense_layers "
            f"{config.model.dense_layers} + model.sparse_layers {config.model.sparse_layers} + the query layer); "
            f"expected 1 to {layers}, or all"
        )
    if asked == "sparse" and not has_experts(config):
        raise InputError(
            "train.recompute is sparse in a network without experts (model.sparse_layers 0, model.sparse_query_layer "
            "false); expected none, attention, all, or a number of layers"
        )
    if asked != "none" and config.runtime.mode == "pynative":
        raise InputError(
            f"train.recompute is {asked} with runtime.mode pynative, which has no graph to compute anew; expected none"
        )


def check_checkpoints(config: Config) -> None:
    """Checks the section `checkpoint`. Raises InputError, which names the keys and values that do not fit."""
    options = config.checkpoint
    if options.keep_every and options.interval and options.keep_every % options.interval:
        raise InputError(
            f"checkpoint.keep_every ({options.keep_every}) is not a multiple of checkpoint.interval "
            f"({options.interval}), the steps at which there are checkpoints to keep; expected 0 or a multiple of "
            f"{options.interval}"
        )
    if options.keep_every and not options.interval:
        raise InputError(
            f"checkpoint.keep_every is {options.keep_every} with checkpoint.interval 0, which writes the last step "
            "alone; expected 0"
        )
    if options.initial is not None and options.resume not in (None, "auto"):
        raise InputError(
            f"checkpoint.initial is {options.initial} with checkpoint.resume {options.resume}, which resumes a "
            "run; expected null, or checkpoint.resume null or auto"
        )


def check_clusters(clusters: ClusterConfig) -> None:
    """Checks the section `data.prepare.clusters`. Raises InputError: one cluster, or a key that nothing uses."""
    if clusters.count == 1:
        raise InputError("data.prepare.clusters.count is 1, which tells no text apart; expected 0, or 2 and more")
    for field in fields(clusters):
        value, default = getattr(clusters, field.name), getattr(ClusterConfig(), field.name)
        if not clusters.count and value != default:
            raise InputError(
                f"data.prepare.clusters.{field.name} is {value} with data.prepare.clusters.count 0, which finds no "
                f"clusters; expected {default}, its default, or a number of clusters"
            )


def check_paths(config: Config) -> None:
    """The folder `data.path` is for what `prepare` writes alone: a run there, or text to read, would be mistaken for
    it.

    Raises:
        InputError: the run directory, a source or the given tokenizer lies inside (or is) `data.path`, through whatever
            links.
    """
    prepare = config.data.prepare
    others = {"train.output_dir": config.train.output_dir}
    others.update({f"data.prepare.sources.{domain}": source for domain, source in prepare.sources.items()})
    if prepare.tokenizer is not None:
        others["data.prepare.tokenizer"] = prepare.tokenizer
    folder = _real(config.data.path)
    for key, text in others.items():
        other = _real(text)
        if other == folder or folder in other.parents:
            where = "" if str(other) == os.path.abspath(text) else f", as {other},"
            raise InputError(
                f"{key} ({text}) lies inside data.path ({config.data.path}){where} "
                "which is for what `prepare` writes; expected separate folders"
            )


def _real(text: str) -> Path:
    try:
        return Path(os.path.realpath(text))
    except UnicodeEncodeError:  # no file of this name can be reached in this locale, nor a link
        return Path(os.path.abspath(text))
