"""`pangu-sigma ckpt inherit`: a PanGu-Sigma that begins as the dense model it is grown from.

The feed-forward network of each layer that becomes sparse is copied into every one of its experts, and word rows into
every domain's slot; everything else is copied as it is. Whichever expert a token is sent to, and whatever its domain,
it finds the dense network: with `moe.scale_by_gate` false, the new model computes what the old one did. Gates and hash
maps are drawn as for any new run.
"""

import sys
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, List, Optional, Tuple

import numpy as np

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.format import CheckpointHeader
from pangu_sigma.checkpoint.header import data_state
from pangu_sigma.checkpoint.names import expert_name
from pangu_sigma.checkpoint.shards import NAMES_OF, PlannedTensor, planned
from pangu_sigma.checkpoint.surgery.blueprint import Blueprint, draw_blueprint
from pangu_sigma.checkpoint.surgery.dense import DenseModel
from pangu_sigma.checkpoint.surgery.rewrite import check_target, write_checkpoint
from pangu_sigma.checkpoint.surgery.vocabulary import Rows, match_rows
from pangu_sigma.config.derived import num_blocks
from pangu_sigma.config.load import save_config, to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.manifest import TOKENIZER
from pangu_sigma.data.vocabulary import vocabulary

# A bank's parameter -> the dense network's, transposed or not; the shapes differ by a leading 1 in biases.
_FROM_DENSE = {
    "w_in": ("w_in.weight", True),
    "b_in": ("w_in.bias", False),
    "w_out": ("w_out.weight", True),
    "b_out": ("w_out.bias", False),
}
_BY_POSITION = ("embedding.position", "query_layer.top_query")


@dataclass(frozen=True)
class Noise:
    """What breaks the symmetry of experts that begin as copies: normal noise on their matrices, of `share` times the
    standard deviation of the matrix, another for each expert; 0: none.
    """

    share: float = 0.0
    seed: int = 1

    def on(self, matrix: np.ndarray, name: str) -> np.ndarray:
        if not self.share:
            return matrix
        drawn = np.random.default_rng((self.seed, zlib.crc32(name.encode()))).standard_normal(
            matrix.shape, dtype=np.float32
        )
        return (matrix + drawn * np.float32(self.share * matrix.std())).astype(np.float32)


NO_NOISE = Noise()


def inherit(
    dense: DenseModel,
    target: str,
    config: Config,
    noise: Noise = NO_NOISE,
    source_tokenizer: Optional[str] = None,
    shards: int = 1,
) -> None:
    """Writes the checkpoint folder `target`, weights alone, for a run of `config` to begin with (`checkpoint.initial`).

    Args:
        source_tokenizer: the dense model's; word rows are then matched by piece. None: rows keep their ids.

    Memory: the word table with all slots, the network without its experts, and one expert.

    Raises InputError: the two are not the same network but for experts and vocabulary; tokenizers differ and none is
    given; a target that is there already.
    """
    check_target(Path(target))
    data = PreparedData.open(config.data.path)
    words = vocabulary(config, data)
    blueprint = draw_blueprint(config, words)
    _check(dense, config, blueprint)
    rows = match_rows(dense, data, words.words, source_tokenizer)
    plan = _Plan(dense, config, rows, noise)
    tensors = [
        *(plan.shared(name, value) for name, value in blueprint.shared.items()),
        *(tensor for name, shape in blueprint.banks.items() for tensor in plan.bank(name, shape)),
    ]
    header = CheckpointHeader(
        0, "weights", to_dict(config), data_state(data, words.words), {}, {}, blueprint.scalars, (dense.origin,)
    )
    write_checkpoint(
        Path(target),
        header,
        tensors,
        shards,
        lambda folder: save_config(config, folder / "config.yaml"),
        {TOKENIZER: data.read_tokenizer()},
    )
    print(
        f"{target}: {dense.origin}; {config.moe.num_experts} experts in each of {len(blueprint.banks) // 4} sparse "
        f"layers{f', noise {noise.share:g}' if noise.share else ''}"
    )
    print(
        f"{rows.inherited} of {words.words} word rows inherited, {words.words - rows.inherited} drawn anew; begin with "
        f"checkpoint.initial={target}"
    )


def _check(dense: DenseModel, config: Config, blueprint: Blueprint) -> None:
    warning = dense.check(config)
    layers, wanted = dense.layers(), num_blocks(config)
    if layers != wanted:
        raise InputError(
            f"model.dense_layers ({config.model.dense_layers}) + model.sparse_layers ({config.model.sparse_layers}): "
            f"the dense model has {layers} layers below its query layer; expected as many in all"
        )
    if not blueprint.banks:
        raise InputError(
            "model.sparse_layers is 0 and model.sparse_query_layer false; inherit expected a sparse layer to grow"
        )
    if warning is not None:
        print(f"pangu-sigma: warning: {warning}", file=sys.stderr, flush=True)


class _Plan:
    """From the parameters of the new network to where their values come from."""

    def __init__(self, dense: DenseModel, config: Config, rows: Rows, noise: Noise) -> None:
        self._dense = dense
        self._rows = rows
        self._noise = noise
        self._config = config
        self._known = set(dense.names())

    def shared(self, name: str, initial: np.ndarray) -> PlannedTensor:
        """What experts share; `initial`: its value in a new run, which stays where the dense model has no such
        parameter.
        """
        if name == "embedding.word":
            return PlannedTensor(name, initial.shape, "F32", partial(self._word_table, initial))
        if name not in self._known and ".routing." in name:
            return planned(name, initial)
        load: Callable[[], np.ndarray] = partial(self._like, name, initial.shape)
        return PlannedTensor(name, initial.shape, NAMES_OF[initial.dtype], load)

    def bank(self, name: str, shape: Tuple[int, ...]) -> List[PlannedTensor]:
        """One tensor for each expert of a layer."""
        layer, _, parameter = name.rpartition(".experts.")
        stored, transposed = _FROM_DENSE[parameter]
        names = [expert_name(name, expert) for expert in range(self._config.moe.num_experts)]
        return [
            PlannedTensor(own, shape, "F32", partial(self._expert, own, f"{layer}.{stored}", transposed, shape))
            for own in names
        ]

    def _expert(self, name: str, source: str, transposed: bool, shape: Tuple[int, ...]) -> np.ndarray:
        value = self._dense.read(source)
        if not transposed:
            return _shaped(value.reshape(1, -1), shape, source)
        return self._noise.on(_shaped(np.ascontiguousarray(value.T), shape, source), name)

    def _like(self, name: str, shape: Tuple[int, ...]) -> np.ndarray:
        value = self._dense.read(name)
        if name in _BY_POSITION and len(value) > shape[0]:
            value = value[: shape[0]]  # a model of shorter sequences
        return _shaped(value, shape, name)

    def _word_table(self, initial: np.ndarray) -> np.ndarray:
        """The rows that are inherited, and for the others the new run's; every slot the same."""
        words = self._rows.words
        slot = initial[:words].copy()
        slot[self._rows.ours] = _shaped(
            self._dense.read("embedding.word"), (self._rows.source_words, *slot.shape[1:]), "embedding.word"
        )[self._rows.theirs]
        return np.tile(slot, (len(initial) // words, 1))


def _shaped(value: np.ndarray, shape: Tuple[int, ...], name: str) -> np.ndarray:
    if value.shape != tuple(shape):
        raise InputError(
            f"{name}: the dense model has shape {list(value.shape)}; expected {list(shape)} as the configuration says"
        )
    return np.ascontiguousarray(value)
