"""Dense models to inherit from: this project's own, and PanGu-alpha's public MindSpore checkpoints, under the same
names.

PanGu-alpha's names and layouts are those of its public code: `mindspore-ai/models`,
official/nlp/Pangu_alpha/src/pangu_alpha.py, for the cells and both positions of the final norm;
`mindspore-lab/mindformers`, mindformers/models/pangualpha/convert_weight.py, for the parameters. Query, key and value
maps (`dense1` to `dense3`) are stored as (out, in), as here; the attention's output map and both maps of the
feed-forward network as (in, out). Older files name the tables otherwise, or leave them in `.npy` files next to it.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import numpy as np

import mindspore as ms

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.names import is_training_state
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.surgery.rewrite import newest
from pangu_sigma.config.schema import Config, ModelConfig
from pangu_sigma.data.manifest import tokenizer_among

# This project's name within a block -> PanGu-alpha's, and whether the stored matrix is the transpose of ours.
BLOCK = {
    "attention_norm.gamma": ("layernorm1.gamma", False),
    "attention_norm.beta": ("layernorm1.beta", False),
    "attention.query.weight": ("attention.dense1.weight", False),
    "attention.query.bias": ("attention.dense1.bias", False),
    "attention.key.weight": ("attention.dense2.weight", False),
    "attention.value.weight": ("attention.dense3.weight", False),
    "attention.value.bias": ("attention.dense3.bias", False),
    "attention.project.weight": ("attention.projection.weight", True),
    "attention.project.bias": ("attention.projection.bias", False),
    "ffn_norm.gamma": ("layernorm2.gamma", False),
    "ffn_norm.beta": ("layernorm2.beta", False),
    "feed_forward.w_in.weight": ("output.mapping.weight", True),
    "feed_forward.w_in.bias": ("output.mapping.bias", False),
    "feed_forward.w_out.weight": ("output.projection.weight", True),
    "feed_forward.w_out.bias": ("output.projection.bias", False),
}
# A bias of the keys adds the same to all scores of a query, which softmax does not see: the network here has none.
WITHOUT_EFFECT = "attention.dense2.bias"
TABLES = {
    "embedding.word": (
        "backbone.embedding.word_embedding.embedding_table",
        "backbone.word_embedding.embedding_table",
        "word_embedding_table",
        "embedding_table",
    ),
    "embedding.position": (
        "backbone.embedding.position_embedding.embedding_table",
        "backbone.position_embedding.embedding_table",
        "backbone.embedding.embedding.position_embedding.embedding_table",
        "position_embedding_table",
    ),
    "query_layer.top_query": (
        "backbone.top_query_embedding.embedding_table",
        "backbone.top_query_embedding_table",
        "query_embedding_table",
    ),
    "final_norm.gamma": ("backbone.layernorm.gamma",),
    "final_norm.beta": ("backbone.layernorm.beta",),
}
TABLE_FILES = {
    "embedding.word": "word_embedding.npy",
    "embedding.position": "position_embedding.npy",
    "query_layer.top_query": "top_query_embedding.npy",
}
PANGU_ALPHA = {"layer_norm_epsilon": 1e-5}
# A file does not say which nonlinearity its network has. Public code has used fast_gelu, and gelu in MindSpore's
# default form, tanh.
PANGU_ALPHA_ACTIVATIONS = ("fast_gelu", "gelu_tanh", "gelu")


class DenseModel(ABC):
    """Parameters of a dense model by this project's names.

    Attributes:
        origin: a line on what it is.
        tokenizer_sha256: if known.
        tokenizer_file: if the model carries it.
        is_foreign: whether another program wrote it, so that a dense model may be made of it as it is.
    """

    origin: str
    tokenizer_sha256: Optional[str] = None
    tokenizer_file: Optional[Path] = None
    is_foreign: bool = False

    @abstractmethod
    def names(self) -> List[str]:
        """Of all parameters."""

    @abstractmethod
    def read(self, name: str) -> np.ndarray:
        """<float32>, in this project's layout. Raises InputError where there is no such parameter."""

    @abstractmethod
    def check(self, config: Config) -> Optional[str]:
        """Raises InputError where a network of `config` would not be the same function. Returns a warning where the
        model does not say all that this takes, one line.
        """

    def layers(self) -> int:
        """Decoder layers below the query layer."""
        return len({name.split(".")[1] for name in self.names() if name.startswith("blocks.")})


class OwnModel(DenseModel):
    """A checkpoint of this project without sparse layers."""

    def __init__(self, source: str) -> None:
        self._reader = CheckpointReader.open(newest(source))
        header = self._reader.header
        self._model: ModelConfig = self._reader.config().model
        if self._model.sparse_layers or self._model.sparse_query_layer or self._model.domain_embeddings:
            raise InputError(
                f"{self._reader.folder}: has {self._model.sparse_layers} sparse layers, sparse_query_layer "
                f"{self._model.sparse_query_layer}, domain_embeddings {self._model.domain_embeddings}; inherit "
                "expected a dense model: model.sparse_layers 0 and neither of the others"
            )
        self.origin = f"inherited from {self._reader.folder}, step {header.step}"
        self.tokenizer_sha256 = header.data.tokenizer_sha256
        name = tokenizer_among(self._reader.manifest.files)
        self.tokenizer_file = None if name is None else self._reader.folder / name

    def names(self) -> List[str]:
        return [name for name in self._reader.names() if not is_training_state(name)]

    def read(self, name: str) -> np.ndarray:
        return self._reader.read(name)

    def check(self, config: Config) -> Optional[str]:
        for key in ("num_heads", "activation", "layer_norm_epsilon", "final_norm"):
            require_same(key, getattr(config.model, key), getattr(self._model, key), str(self._reader.folder))
        return None


class PanguAlpha(DenseModel):
    """A MindSpore `.ckpt` file of PanGu-alpha, all slices merged into one.

    Args:
        path: the file.
        final_norm: `before_query` for a model trained without pipeline parallelism, `after_query` for one trained with
            it; the file does not say.
    """

    is_foreign = True

    def __init__(self, path: Path, final_norm: str) -> None:
        self._path = path
        self._final_norm = final_norm
        try:  # a protocol buffer: no code in it
            found = ms.load_checkpoint(str(path))
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: cannot be read ({reason}); expected a MindSpore checkpoint") from None
        self._stored = {name: value.asnumpy() for name, value in found.items() if hasattr(value, "asnumpy")}
        for ours, name in TABLE_FILES.items():
            table = path.with_name(name)
            if table.is_file() and not any(candidate in self._stored for candidate in TABLES[ours]):
                try:
                    self._stored[name] = np.load(table, allow_pickle=False)
                except (OSError, ValueError) as error:
                    raise InputError(f"{table}: cannot be read ({error}); expected an array of numbers") from None
        self._found = self._find()
        self.origin = f"inherited from PanGu-alpha's {path.name}, final norm {final_norm}"

    def names(self) -> List[str]:
        return list(self._found)

    def read(self, name: str) -> np.ndarray:
        if name not in self._found:
            raise InputError(f"{self._path}: nothing for {name}; expected all parameters of PanGu-alpha in one file")
        stored, transposed = self._found[name]
        array = self._stored[stored].astype(np.float32)
        return np.ascontiguousarray(array.T) if transposed else array

    def check(self, config: Config) -> Optional[str]:
        for key, value in {**PANGU_ALPHA, "final_norm": self._final_norm}.items():
            require_same(key, getattr(config.model, key), value, str(self._path))
        found = config.model.activation
        if found not in PANGU_ALPHA_ACTIVATIONS:
            raise InputError(
                f"model.activation is {found}, which no PanGu-alpha has ({self._path}); expected that of the code "
                f"which trained it: {', '.join(PANGU_ALPHA_ACTIVATIONS)}"
            )
        return (
            f"{self._path} does not say its network's activation, so model.activation decides: {found}. The public "
            "code has used fast_gelu, and gelu in its tanh form (gelu_tanh here); with another one than the file was "
            "trained with, the new model computes something else"
        )

    def _find(self) -> Dict[str, Tuple[str, bool]]:
        """Our name -> (stored name, transposed). Raises InputError for a parameter of the backbone that has no
        counterpart here.
        """
        found, left = {}, {name for name in self._stored if name.startswith("backbone.")}
        for ours, candidates in TABLES.items():
            stored = next((name for name in (*candidates, TABLE_FILES.get(ours, "")) if name in self._stored), None)
            if stored is not None:
                found[ours] = stored, False
                left.discard(stored)
        for stored in sorted(left):
            words = stored.split(".")  # as in backbone.blocks.3.layernorm1.gamma
            prefix, inner = "", ""
            if words[1] == "top_query_layer":
                prefix, inner = "query_layer", ".".join(words[2:])
            elif words[1] == "blocks" and len(words) > 3 and words[2].isdecimal():
                prefix, inner = f"blocks.{words[2]}", ".".join(words[3:])
            part = next((name for name, (theirs, _) in BLOCK.items() if theirs == inner), None)
            if prefix and part is not None:
                found[f"{prefix}.{part}"] = stored, BLOCK[part][1]
            elif not prefix or inner != WITHOUT_EFFECT:
                raise InputError(
                    f"{self._path}: {stored} is no parameter of PanGu-alpha; expected names such as "
                    f"{TABLES['embedding.word'][0]}"
                )
        return found


def require_same(key: str, found: object, expected: object, source: str) -> None:
    """Raises InputError where a key of the new model's configuration is not what the dense one is.

    Args:
        key: of the section `model`. found: its value. expected: the dense model's. source: its name in messages.
    """
    if found != expected:
        raise InputError(f"model.{key} is {found}, but {source} is a network with {expected}; expected the same")
