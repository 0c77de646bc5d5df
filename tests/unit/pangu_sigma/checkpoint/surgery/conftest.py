"""Small models with every number random, their checkpoints, and their logits."""

from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional, Sequence

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology
from pangu_sigma.checkpoint.header import training_header
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.state import RankLocation, local_tensors, read_values, set_values, weights
from pangu_sigma.checkpoint.writer import CheckpointWriter, Retention, WritingJob
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.prepare import prepare
from pangu_sigma.data.vocabulary import Vocabulary, vocabulary
from pangu_sigma.model.capacity_rules import resolve_layout
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.train.engine import TrainEngine

ROWS, LENGTH = 3, 48  # 144 tokens and slots: whole blocks of rows for the matrix products of any CPU (see test_inherit)


@pytest.fixture(autouse=True)
def pynative() -> None:
    """One forward pass a network: compiling would take longer than computing."""
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Two domains of made-up words, 320 pieces."""
    folder = tmp_path_factory.mktemp("data48")
    generator = np.random.default_rng(3)
    words = np.array(["".join(generator.choice(list("klmnopqrst"), 4)) for _ in range(120)])
    for domain in ("one", "two"):
        (folder / domain).mkdir()
        for number in range(8):
            (folder / domain / f"{number}.txt").write_text(" ".join(generator.choice(words, 200)))
    prepare(
        config_from_dict(
            {
                "model": {"sequence_length": LENGTH},
                "data": {
                    "path": str(folder / "data"),
                    "prepare": {
                        "sources": {name: str(folder / name) for name in ("one", "two")},
                        "vocab_size": 320,
                        "validation_fraction": 0.2,
                    },
                },
            }
        )
    )
    return PreparedData.open(str(folder / "data"))


class Model(NamedTuple):
    """A network on one process, its configuration, and the words it knows."""

    config: Config
    parts: TrainEngine
    words: Vocabulary

    def logits(self, domain: Sequence[int], ids: Optional[np.ndarray] = None) -> np.ndarray:
        """<float32>[T, V] in evaluation, for rows of these domains."""
        rows = len(domain)
        ids = random_ids(rows) if ids is None else ids
        place = np.tile(np.arange(LENGTH, dtype=np.int32), (rows, 1))
        documents = (place >= 20).astype(np.int32)
        network = self.parts.network
        network.set_train(False)
        zeros = np.zeros(rows, np.int32)
        inputs = (ids, place, documents, np.asarray(domain, np.int32), zeros, zeros)
        return network(*(Tensor(array) for array in inputs))[0].asnumpy()


def random_ids(rows: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 320, (rows, LENGTH)).astype(np.int32)


def make_config(path: Path, model: Optional[Mapping] = None, moe: Optional[Mapping] = None, **sections: Any) -> Config:
    """Two groups of two experts, slots for every token."""
    model = {"hidden_size": 16, "num_heads": 2, "ffn_hidden_size": 20, "sequence_length": LENGTH, **(model or {})}
    moe = {"num_experts": 4, "num_groups": 2, "capacity": {"evaluation_factor": 100.0}, **(moe or {})}
    sections.setdefault("data", {"path": str(path)})
    return config_from_dict({"model": model, "moe": moe, "train": {"global_batch_size": ROWS}, **sections})


def build(config: Config, words: Vocabulary) -> Model:
    return Model(config, TrainEngine(config, Runtime(create_collectives("local", Topology(1, 1), 0)), words), words)


class Workshop:
    """Builds models on the data of this folder, saves them and loads what tools made of them."""

    def __init__(self, data: PreparedData) -> None:
        self.data = data

    def config(self, model: Optional[Mapping] = None, moe: Optional[Mapping] = None, **sections: Any) -> Config:
        return make_config(self.data.path, model, moe, **sections)

    def random_model(self, config: Config, seed: int = 0) -> Model:
        """Every trainable number is random, biases and norms too, so that none of them can be forgotten unnoticed."""
        model = build(config, vocabulary(config, self.data))
        rng = np.random.default_rng(seed)
        for parameter in model.parts.network.trainable_params():
            around = 1.0 if parameter.name.endswith("gamma") else 0.0
            parameter.set_data(Tensor((around + 0.3 * rng.standard_normal(parameter.shape)).astype(np.float32)))
        for moment in (*model.parts.adam.first, *model.parts.adam.second):
            moment.set_data(Tensor(rng.random(moment.shape).astype(np.float32)))
        return model

    def save(self, model: Model, root: Path, step: int = 7) -> Path:
        parts, location = model.parts, RankLocation(Topology(1, 1), 0, held(model))
        header = training_header(
            model.config,
            resolve_layout(model.config, Topology(1, 1)),
            self.data,
            model.words.vocab_size,
            step,
            parts.state(),
        )
        with CheckpointWriter(root, WritingJob(0, (0,), 5.0, lambda: None), Retention()) as writer:
            writer.save(header, local_tensors(parts.state(), location))
        return root / f"step_{step}"

    def load(self, config: Config, folder: Path, words: Optional[Vocabulary] = None) -> Model:
        """A new network with the weights of a checkpoint."""
        model = build(config, words or vocabulary(config, self.data))
        with CheckpointReader.open(folder) as reader:
            set_values(read_values(reader, weights(model.parts.state()), held(model)))
        return model


def held(model: Model) -> tuple:
    """Global ids of the experts in the order of their buffers, from the bank itself."""
    for _, cell in model.parts.network.cells_and_names():
        if hasattr(cell, "local_experts") and isinstance(cell.local_experts, tuple):
            return cell.local_experts
    return ()


@pytest.fixture(scope="session")
def workshop(data: PreparedData) -> Workshop:
    return Workshop(data)
