"""A small checkpoint in several shards, written the way a job of four ranks writes it."""

import threading
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest

from locmoe_ops.shard_spec import ShardSpec
from pangu_sigma.checkpoint.format import CheckpointHeader, DataState
from pangu_sigma.checkpoint.parts import LocalTensor
from pangu_sigma.checkpoint.writer import CheckpointWriter, Retention, WritingJob

RANKS = 4  # two expert-parallel indices of two tensor-parallel ranks each
WORDS = ShardSpec(0, 0, 2, blocks=2)  # the word table: two slots, each cut by itself


def make_header(step: int, **changed: Any) -> CheckpointHeader:
    fields = {
        "step": step,
        "contents": "training",
        "config": {"model": {"hidden_size": 4}, "moe": {}},
        "data": DataState("ab" * 32, 6, ("en", "zh"), "cd" * 32),
        "sampler": {"next_step": step, "train.seed": 1},
        "rng": {"next_step": step, "train.seed": 1},
        "scalars": {"loss_scale.scale": 65536.0, "optimizer.updates": float(step)},
    }
    return CheckpointHeader(**{**fields, **changed})


def make_tensors(seed: int) -> Dict[str, np.ndarray]:
    """Whole tensors by name; experts 0 and 2 live at the first expert-parallel index, 1 and 3 at the second."""
    rng = np.random.default_rng(seed)
    found = {"embedding.word": (12, 4), "blocks.0.norm.gamma": (4,), "adam_m.embedding.word": (12, 4)}
    found.update({f"blocks.0.experts.w_in@{expert}": (4, 8) for expert in range(4)})
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in found.items()}
    return {
        **tensors,
        "capacity.state": np.arange(5, dtype=np.int64) << 40,
        "blocks.0.table": np.arange(6, dtype=np.int32),
    }


def pieces_of(tensors: Dict[str, np.ndarray], rank: int) -> list:
    """What one of the four ranks writes."""
    expert_index, tensor_index = divmod(rank, 2)
    found = []
    for name, whole in tensors.items():
        if "@" in name:
            if int(name[-1]) % 2 == expert_index:
                part = ShardSpec(1, tensor_index, 2)
                found.append(
                    LocalTensor(name, part.cut(whole), part, f"experts_{expert_index}_{tensor_index}.safetensors")
                )
        elif expert_index == 0 and "word" in name:
            part = ShardSpec(0, tensor_index, 2, 2)
            found.append(LocalTensor(name, part.cut(whole), part, f"dense_{tensor_index}.safetensors"))
        elif rank == 0:
            found.append(LocalTensor(name, whole, None, "dense_0.safetensors"))
    return found


def save_as_job(root: Path, step: int, tensors: Dict[str, np.ndarray], asynchronous: bool = True) -> None:
    """Four ranks, one a thread."""
    meeting = threading.Barrier(RANKS)

    def run(rank: int) -> None:
        job = WritingJob(rank, range(RANKS), 30.0, meeting.wait)
        with CheckpointWriter(root, job, Retention(), asynchronous) as writer:
            writer.save(make_header(step), pieces_of(tensors, rank))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture
def tensors() -> Dict[str, np.ndarray]:
    return make_tensors(0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where checkpoints of a run go."""
    return tmp_path / "checkpoints"


@pytest.fixture
def saved(root: Path, tensors: Dict[str, np.ndarray]) -> Path:
    """A whole checkpoint of step 3."""
    save_as_job(root, 3, tensors)
    return root / "step_3"


@pytest.fixture(scope="session")
def job() -> Callable[..., None]:
    return save_as_job


@pytest.fixture(scope="session")
def header() -> Callable[..., CheckpointHeader]:
    return make_header


@pytest.fixture(scope="session")
def random_tensors() -> Callable[[int], Dict[str, np.ndarray]]:
    return make_tensors
