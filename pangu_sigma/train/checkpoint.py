"""Checkpoints: safetensors shards and a manifest, whole or absent, readable at any parallel degree.

`step_N/dense.safetensors` holds what all ranks share, written by rank 0. `step_N/experts_R.safetensors` holds the experts of
expert-parallel index R, written by the first replica; every expert stands there alone under its global id
(`NAME@E`), so that readers need not know which rank wrote it. What a tensor-parallel group shares out is put together before it
is written, and cut again when it is read. Ranks write into `step_N.part`, which rank 0 renames when all
are done and `manifest.json` names every file with its size and checksum.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mindspore import Parameter, Tensor

from locmoe_ops.collectives import Collectives
from locmoe_ops.errors import InputError
from locmoe_ops.tensor_parallel import own_part, slice_of, whole_shape
from pangu_sigma.train.metrics import write_atomically
from pangu_sigma.train.optimizer import is_expert_parameter

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MESSAGE_ELEMENTS = 4 * 1024 * 1024  # 16 MB of float32


class Checkpoint(NamedTuple):
    """A whole checkpoint on disk."""

    folder: Path
    step: int
    config: Dict[str, Any]
    files: Dict[str, Dict[str, Any]]  # name -> bytes, sha256, tensors


def save_checkpoint(root: Path, step: int, state: Sequence[Parameter], local_experts: Tuple[int, ...], config: Dict[str, Any],
                    collectives: Collectives, keep: int) -> None:
    """Writes `root/step_N` from all ranks and removes the oldest beyond `keep`.

    Args:
        state: `TrainingParts.state()`. local_experts: global ids of this rank's experts, in the order of their leading axis.
    """
    topology, rank = collectives.topology, collectives.rank
    final, part = root / f"step_{step}", root / f"step_{step}.part"
    if rank == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    collectives.barrier()
    values = whole_values(state, collectives) if topology.edp_index(rank) == 0 else {}  # nobody else writes
    shared, experts = _split(state, values, local_experts) if values else ({}, {})
    if rank == 0:
        _write_shard(part / "dense.safetensors", shared)
    if experts and rank in topology.group_of("ep", 0):
        _write_shard(part / f"experts_{topology.ep_index(rank)}.safetensors", experts)
    collectives.barrier()
    if rank == 0:
        _finish(part, final, step, config)
        _remove_old(root, keep)
    collectives.barrier()


def load_checkpoint(checkpoint: Checkpoint, state: Sequence[Parameter], local_experts: Tuple[int, ...]) -> None:
    """Sets every parameter of `state` from the checkpoint, whatever the parallel degree that wrote it.

    Raises InputError naming file and tensor where one is missing or has another shape; then nothing has been set.
    """
    where = {tensor: name for name, entry in checkpoint.files.items() for tensor in entry["tensors"]}
    loaded = [_assemble(checkpoint, where, parameter, local_experts) for parameter in state]
    for parameter, value in zip(state, loaded):
        parameter.set_data(Tensor(value))


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads the manifest and checks every file's size and checksum. Raises InputError naming the file that is wrong."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: no {MANIFEST} there; expected a checkpoint folder such as RUN/checkpoints/step_100")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        checkpoint = Checkpoint(folder, int(manifest["step"]), dict(manifest["config"]), dict(manifest["files"]))
        version = manifest["format_version"]
        sizes = {name: (int(entry["bytes"]), str(entry["sha256"]), list(entry["tensors"])) for name, entry in checkpoint.files.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a checkpoint manifest ({type(error).__name__}: {error}); expected one that training wrote") from None
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: format version {version}; expected {FORMAT_VERSION}")
    for name, (size, digest, _) in sizes.items():
        _check_file(folder / name, size, digest)
    return checkpoint


def newest_checkpoint(root: Path) -> Optional[Path]:
    """The folder of the highest step under `root`, or None. Unfinished ones (`.part`) do not count."""
    found = _finished(root)
    return found[-1][1] if found else None


def _finished(root: Path) -> List[Tuple[int, Path]]:
    folders = [(p.name[5:], p) for p in root.glob("step_*") if p.is_dir()]
    return sorted((int(number), path) for number, path in folders if number.isdigit())


def whole_values(state: Sequence[Parameter], collectives: Collectives) -> Dict[str, np.ndarray]:
    """Every parameter's value by name, as without tensor parallelism. All ranks of a `tp` group must call it together.

    Parts travel in messages of equal length, so that one small graph serves all of them.
    """
    parts = [(p, part) for p in state for part in (slice_of(p),) if part is not None]
    values = {p.name: p.asnumpy() for p in state if slice_of(p) is None}
    if not parts:
        return values
    own = np.concatenate([p.asnumpy().reshape(-1) for p, _ in parts])
    gather, size = collectives.all_gather("tp", "checkpoint/parts"), min(MESSAGE_ELEMENTS, own.size)
    padded = np.concatenate((own, np.zeros(-own.size % size, own.dtype))).reshape(-1, size)
    of_all = np.concatenate([gather(Tensor(piece)).asnumpy().reshape(-1, size) for piece in padded], 1)  # (P, n) of every rank
    start = 0
    for parameter, part in parts:
        pieces = of_all[:, start:start + parameter.size]
        values[parameter.name] = part.join([piece.reshape(parameter.shape) for piece in pieces])
        start += parameter.size
    return values


def _split(state: Sequence[Parameter], values: Dict[str, np.ndarray],
           local_experts: Tuple[int, ...]) -> Tuple[Dict[str, np.ndarray], Dict[str, np.ndarray]]:
    shared = {p.name: values[p.name] for p in state if not is_expert_parameter(p)}
    experts = {f"{p.name}@{e}": values[p.name][i] for p in state if is_expert_parameter(p) for i, e in enumerate(local_experts)}
    return shared, experts


def _write_shard(path: Path, tensors: Dict[str, np.ndarray]) -> None:
    save_file({name: np.array(value, order="C") for name, value in tensors.items()}, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _finish(part: Path, final: Path, step: int, config: Dict[str, Any]) -> None:
    files = {}
    for path in sorted(part.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as shard:
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _digest(path), "tensors": list(shard.keys())}
    manifest = {"format_version": FORMAT_VERSION, "step": step, "config": config, "files": files}
    write_atomically(part / MANIFEST, json.dumps(manifest, indent=1))
    if final.exists():  # a resumed run that reaches the same step again: the old one goes only now
        shutil.rmtree(final)
    os.replace(part, final)


def _remove_old(root: Path, keep: int) -> None:
    for _, path in _finished(root)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _check_file(path: Path, size: int, digest: str) -> None:
    if not path.is_file():
        raise InputError(f"{path}: missing; expected the file that {MANIFEST} names")
    if path.stat().st_size != size:
        raise InputError(f"{path}: {path.stat().st_size} bytes; expected {size}, the file was cut off or changed")
    if _digest(path) != digest:
        raise InputError(f"{path}: checksum differs from {MANIFEST}; the file is damaged")


def _assemble(checkpoint: Checkpoint, where: Dict[str, str], parameter: Parameter, local_experts: Tuple[int, ...]) -> np.ndarray:
    if is_expert_parameter(parameter):
        parts = _read(checkpoint, where, [f"{parameter.name}@{expert}" for expert in local_experts])
        value = np.stack(list(parts))
    else:
        value = next(_read(checkpoint, where, [parameter.name]))
    expected = whole_shape(parameter)
    if value.shape != expected:
        raise InputError(f"{checkpoint.folder}: tensor {parameter.name} has shape {list(value.shape)}; expected "
                         f"{list(expected)} as the configuration says")
    return own_part(parameter, value)


def _read(checkpoint: Checkpoint, where: Dict[str, str], names: List[str]) -> Iterator[np.ndarray]:
    for name in names:
        if name not in where:
            raise InputError(f"{checkpoint.folder}: no tensor {name}; expected a checkpoint of the same model and router")
        path = checkpoint.folder / where[name]
        try:
            with safe_open(path, framework="numpy") as shard:
                yield shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: cannot be read ({error}); expected a safetensors file") from None
