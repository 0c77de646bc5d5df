"""One training run, from configuration to summary: `pangu-sigma train`."""

import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from mindspore import Parameter

from locmoe_ops.errors import InputError
from locmoe_ops.topology import ExpertPlacement
from pangu_sigma.config.load import save_config, to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import has_experts
from pangu_sigma.data.batch import Batch
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.loader import BatchLoader, create_loader
from pangu_sigma.data.unigram import unigram_perplexity
from pangu_sigma.model.advice import locality_advice
from pangu_sigma.model.slots import resolve_layout
from pangu_sigma.train.build import TrainingParts, vocabulary
from pangu_sigma.train.capacity import CAPACITY_STATE
from pangu_sigma.train.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint, open_checkpoint
from pangu_sigma.train.cosines import FILE as COSINES
from pangu_sigma.train.cosines import measure_cosines
from pangu_sigma.train.loop import TrainingLoop
from pangu_sigma.train.metrics import HostSum, MetricsLog, summarise, write_atomically
from pangu_sigma.train.runtime import Runtime, start_runtime


def train(config: Config) -> int:
    """Trains as configured, alone or as one rank of a job; returns the exit status.

    Nothing is written before everything that can be checked has been.

    Raises:
        InputError: data, checkpoint or output folder do not fit the configuration.
        CollectiveError: another rank was lost or did not come.
    """
    data = PreparedData.open(config.data.path)
    words = vocabulary(config, data)
    checkpoint = find_checkpoint(config)
    with start_runtime(config) as runtime:
        loader = create_loader(config, data, resolve_layout(config, runtime.topology), _data_rank(runtime), runtime.topology.data)
        with closing(loader):
            parts = TrainingParts(config, runtime, words)
            _run(config, runtime, data, loader, parts, checkpoint)
    return 0


def find_checkpoint(config: Config) -> Optional[Checkpoint]:
    """The checkpoint to go on from, checked; None to start anew.

    Raises InputError where it is unusable, or where a new run would overwrite an old one.
    """
    output, resume = Path(config.train.output_dir), config.checkpoint.resume
    if resume is None:
        _require_fresh(output)
        return None
    newest = newest_checkpoint(output / "checkpoints") if resume == "auto" else Path(resume)
    if newest is None:
        return None
    checkpoint = open_checkpoint(newest)
    if checkpoint.step > config.train.steps:
        raise InputError(f"{newest} is at step {checkpoint.step}, beyond train.steps ({config.train.steps}); expected a larger train.steps")
    _check_same_model(checkpoint, config)
    return checkpoint


def _require_fresh(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"train.output_dir: {output} is a file; expected a folder or a new name")
    for name in ("metrics.jsonl", "checkpoints", "summary.json"):
        if (output / name).exists():
            raise InputError(f"train.output_dir: {output} holds an earlier run ({name}); expected a new folder, or "
                             "checkpoint.resume=auto to go on with that run")


def _check_same_model(checkpoint: Checkpoint, config: Config) -> None:
    """Weights mean something only in the network, and with the router, that they were trained in."""
    now = to_dict(config)
    for section, keys in (("model", list(now["model"])), ("moe", ["num_experts", "num_groups", "domain_groups"])):
        for key in keys:
            if key.endswith("dropout") or key not in checkpoint.config.get(section, {}):
                continue
            if checkpoint.config[section][key] != now[section][key]:
                raise InputError(f"{section}.{key} is {now[section][key]}, but {checkpoint.folder} was trained with "
                                 f"{checkpoint.config[section][key]}; expected the same")
    old = checkpoint.config["moe"]["router"]["type"]
    if old != config.moe.router.type:
        raise InputError(f"moe.router.type is {config.moe.router.type}, but {checkpoint.folder} was trained with {old}; expected the same")


def _data_rank(runtime: Runtime) -> int:
    return runtime.rank // runtime.topology.tensor


def local_experts_of(config: Config, runtime: Runtime) -> Tuple[int, ...]:
    """Global ids of the experts that this rank holds, in the order of their buffers."""
    placement = ExpertPlacement(config.moe.num_experts, config.moe.num_groups, runtime.topology.expert, config.moe.placement)
    return placement.local_experts(runtime.topology.ep_index(runtime.rank))


def _run(config: Config, runtime: Runtime, data: PreparedData, loader: BatchLoader, parts: TrainingParts,
         checkpoint: Optional[Checkpoint]) -> None:
    local_experts = local_experts_of(config, runtime)
    start = 0
    if checkpoint is not None:
        load_checkpoint(checkpoint, restorable(parts, checkpoint), local_experts)
        start = checkpoint.step
    rows = sum(data.rows("train", domain) for domain in range(len(data.domains)))
    loop = TrainingLoop(config, runtime, parts, loader, local_experts, rows)
    log = _open_log(config, start) if runtime.is_first else None
    if log is not None:
        advice = locality_advice(parts.context) if has_experts(config) else []
        print("\n".join([_headline(config, parts, data, runtime.world_size), *advice]), flush=True)
    loop.run(start, log)
    cosines = _cosines(config, runtime, loader, parts)
    unigram = _unigram(data, loop.validation.batches, HostSum(runtime.collectives, "metrics/unigram"))
    if log is not None:
        log.close()
        _finish(config, log.records, unigram, cosines)


def restorable(parts: TrainingParts, checkpoint: Checkpoint) -> List[Parameter]:
    """The state to load. What the capacity's mode keeps is not there after steps in mode `factor`: it is then measured anew."""
    held = {name for entry in checkpoint.files.values() for name in entry["tensors"]}
    return [parameter for parameter in parts.state() if parameter.name != CAPACITY_STATE or parameter.name in held]


def _cosines(config: Config, runtime: Runtime, loader: BatchLoader, parts: TrainingParts) -> Optional[Dict[str, Any]]:
    """What the last step's first micro-batch shows, for `cosines.json`; None where there is to be no such file."""
    train = config.train
    if not (train.cosines and has_experts(config)) or (train.stop_after or train.steps) < train.steps:
        return None
    batch = loader.step(train.steps - 1)[0]
    return measure_cosines(config, parts.routed_tokens(batch), len(batch.ids), runtime.collectives)


def _open_log(config: Config, start: int) -> MetricsLog:
    output = Path(config.train.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"train.output_dir: cannot make {output} ({error.strerror}); expected a writable place") from None
    save_config(config, output / "config.yaml")
    return MetricsLog(output / "metrics.jsonl", start)


def _headline(config: Config, parts: TrainingParts, data: PreparedData, world_size: int) -> str:
    own = sum(p.size for p in parts.parameters) / 1e6
    model = config.model
    tensor = f", tensor parallel {config.parallel.tensor}" if config.parallel.tensor > 1 else ""
    return (f"{config.moe.router.type}: {model.dense_layers} dense + {model.sparse_layers} sparse layers, hidden {model.hidden_size}, "
            f"{config.moe.num_experts} experts\n{own:.1f}M parameters on this rank; {', '.join(data.domains)}; "
            f"{world_size} ranks, expert parallel {config.parallel.expert}{tensor}")


def _unigram(data: PreparedData, batches: List[Batch], host_sum: HostSum) -> Optional[float]:
    """Perplexity of training frequencies on the validation rows of all ranks, the line any model must beat."""
    tokens = sum(float(b.loss_mask.sum()) for b in batches)
    nats = math.log(unigram_perplexity(data.token_counts, batches)) * tokens if tokens else 0.0
    nats, tokens = host_sum.values(np.array([nats, tokens]))
    return math.exp(nats / tokens) if tokens else None


def _finish(config: Config, records: List[Dict[str, Any]], unigram: Optional[float], cosines: Optional[Dict[str, Any]]) -> None:
    """Writes cosines.json and summary.json, unless the run was told to end early as if cut off."""
    if not records or records[-1]["progress/step"] < config.train.steps:
        return
    output = Path(config.train.output_dir)
    if cosines is not None:
        write_atomically(output / COSINES, json.dumps(cosines, allow_nan=False) + "\n")
    summary = {"router": config.moe.router.type, "unigram_perplexity": unigram, **summarise(records)}
    write_atomically(output / "summary.json", json.dumps(summary, indent=1) + "\n")
