"""`pangu-sigma ckpt inherit`: a PanGu-Sigma that begins as the dense model it is grown from.

The feed-forward network of each layer that becomes sparse is copied into every one of its experts, and word rows into
every domain's slot; everything else is copied as it is. Of another program's model, a dense one may be made as well.
Whichever expert a token is sent to, and whatever its domain, it finds the dense network: with `moe.scale_by_gate`
false, the new model computes what the old one did. Gates and hash maps are drawn as for any new run. Shared experts
begin with an output of 0, their other weights drawn, so that they change nothing of this until they are trained.
"""

import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from locmoe_ops.collectives.local import AbsentPeers
from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.checkpoint.format import CheckpointHeader
from pangu_sigma.checkpoint.header import data_state
from pangu_sigma.checkpoint.names import expert_name, is_set_anew
from pangu_sigma.checkpoint.shards import NAMES_OF, PlannedTensor, planned
from pangu_sigma.checkpoint.surgery.dense import DenseModel
from pangu_sigma.checkpoint.surgery.rewrite import check_target, write_checkpoint
from pangu_sigma.checkpoint.surgery.vocabulary import Rows, match_rows
from pangu_sigma.config.derived import num_blocks
from pangu_sigma.config.load import save_config, to_dict
from pangu_sigma.config.schema import CapacityConfig, Config, DispatchConfig, ParallelConfig
from pangu_sigma.data.cooccurrence import nodes_of_ids
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.vocabulary import Vocabulary, vocabulary
from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.initialise import initialise
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.model.parameter_groups import is_expert_parameter
from pangu_sigma.model.sparse import SparseContext
from pangu_sigma.runtime.messages import log

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
        """The matrix with noise of its own, by the `name` of the tensor."""
        if not self.share:
            return matrix
        drawn = np.random.default_rng((self.seed, zlib.crc32(name.encode()))).standard_normal(
            matrix.shape, dtype=np.float32
        )
        return (matrix + drawn * np.float32(self.share * matrix.std())).astype(np.float32)


NO_NOISE = Noise()


class Blueprint(NamedTuple):
    """A network's parameters by name, with shapes and initial values, without its experts taking room.

    Attributes:
        shared: initial values of what all experts share.
        banks: the shape of one expert's part of each bank.
        scalars: single numbers.
    """

    shared: Dict[str, np.ndarray]
    banks: Dict[str, Tuple[int, ...]]
    scalars: Dict[str, float]


def draw_blueprint(config: Config, words: Vocabulary) -> Blueprint:
    """What training of `config` would begin with, gates and hash maps included.

    The network is the one that training builds, seen by one rank of as many as there are experts: of each bank it holds
    one expert, and everything else whole.
    """
    experts = config.moe.num_experts
    plain = replace(
        config,
        parallel=ParallelConfig(expert=experts),
        data=replace(config.data, placement="shuffled"),
        moe=replace(config.moe, capacity=CapacityConfig(), dispatch=DispatchConfig()),
    )
    nobody = AbsentPeers(0, Topology(experts, experts, experts))
    network = PanGuSigma(
        SparseContext(
            plain, model_dims(plain, 1, words.vocab_size, words.domains), nobody, words.counts, words.id_nodes
        )
    )
    initialise(network, config.train.seed, config.model.init_std)
    shared, banks, scalars = {}, {}, {}
    for parameter in network.get_parameters():
        if is_set_anew(parameter.name):
            continue
        if is_expert_parameter(parameter.name):
            banks[parameter.name] = tuple(parameter.shape[1:])
        elif parameter.shape:
            shared[parameter.name] = parameter.asnumpy()
        else:
            scalars[parameter.name] = float(parameter.asnumpy())
    return Blueprint(shared, banks, scalars)


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
        dense: what it is grown from.
        target: the new folder.
        config: of the new network.
        noise: what breaks the symmetry of its experts.
        source_tokenizer: the dense model's; word rows are then matched by piece. None: rows keep their ids.
        shards: number of shard files.

    Memory: the word table with all slots, the network without its experts, and one expert.

    Raises InputError: the two are not the same network but for experts and vocabulary; tokenizers differ and none is
    given; a target that is there already.
    """
    check_target(Path(target))
    data = PreparedData.open(config.data.path)
    words, layout = vocabulary(config, data), config.moe.logical_topology
    given = None if layout is None else Topology(layout.world_size, layout.ranks_per_node, layout.expert)
    words = replace(words, id_nodes=nodes_of_ids(config, data, words.vocab_size, given))
    blueprint = draw_blueprint(config, words)
    _check(dense, config, blueprint)
    rows = match_rows(dense, data, words.vocab_size, source_tokenizer)
    plan = _Plan(dense, config, rows, noise)
    tensors = [
        *(plan.shared(name, value) for name, value in blueprint.shared.items()),
        *(tensor for name, shape in blueprint.banks.items() for tensor in plan.bank(name, shape)),
    ]
    header = CheckpointHeader(
        0, "weights", to_dict(config), data_state(data, words.vocab_size), {}, {}, blueprint.scalars, (dense.origin,)
    )
    write_checkpoint(
        Path(target),
        header,
        tensors,
        shards,
        lambda folder: save_config(config, folder / "config.yaml"),
        {data.manifest.tokenizer_name: data.read_tokenizer()},
    )
    grown = "a dense model as it was"
    if blueprint.banks:
        grown = f"{config.moe.num_experts} experts in each of {len(blueprint.banks) // 4} sparse layers"
        grown += f", noise {noise.share:g}" if noise.share else ""
        shared = config.moe.shared_experts
        grown += f", beside {shared} shared with an output of 0" if shared else ""
    print(f"{target}: {dense.origin}; {grown}")
    print(
        f"{rows.inherited} of {words.vocab_size} word rows inherited, {words.vocab_size - rows.inherited} drawn anew; "
        f"begin with checkpoint.initial={target}"
    )


def _check(dense: DenseModel, config: Config, blueprint: Blueprint) -> None:
    warning = dense.check(config)
    layers, wanted = dense.layers(), num_blocks(config)
    if layers != wanted:
        raise InputError(
            f"model.dense_layers ({config.model.dense_layers}) + model.sparse_layers ({config.model.sparse_layers}): "
            f"the dense model has {layers} layers below its query layer; expected as many in all"
        )
    if not blueprint.banks and not dense.is_foreign:
        raise InputError(
            "model.sparse_layers is 0 and model.sparse_query_layer false; inherit expected a sparse layer to grow"
        )
    if warning is not None:
        log.warning("%s", warning)


class _Plan:
    """From the parameters of the new network to where their values come from."""

    def __init__(self, dense: DenseModel, config: Config, rows: Rows, noise: Noise) -> None:
        self._dense = dense
        self._rows = rows
        self._noise = noise
        self._config = config
        self._known = set(dense.names())

    def shared(self, name: str, initial: np.ndarray) -> PlannedTensor:
        """What routed experts share; `initial`: its value in a new run, which stays where the dense model has no such
        parameter, but for what makes shared experts' output.
        """
        if name == "embedding.word":
            return PlannedTensor(name, initial.shape, "F32", partial(self._word_table, initial))
        if ".shared_experts." in name:
            return planned(name, np.zeros_like(initial) if ".w_out." in name else initial)
        if name not in self._known and ".routing." in name:
            return planned(name, initial)
        shape = initial.shape

        def load() -> np.ndarray:
            value = self._dense.read(name)
            if name in _BY_POSITION and len(value) > shape[0]:
                value = value[: shape[0]]  # a model of shorter sequences
            return _shaped(value, shape, name)

        return PlannedTensor(name, shape, NAMES_OF[initial.dtype], load)

    def bank(self, name: str, shape: Tuple[int, ...]) -> List[PlannedTensor]:
        """One tensor for each expert of a layer."""
        layer, _, parameter = name.rpartition(".experts.")
        stored, transposed = _FROM_DENSE[parameter]
        source = f"{layer}.{stored}"

        def load(own: str) -> np.ndarray:
            value = self._dense.read(source)
            if not transposed:
                return _shaped(value.reshape(1, -1), shape, source)  # (1, f) <- (f,)
            return self._noise.on(_shaped(np.ascontiguousarray(value.T), shape, source), own)

        names = [expert_name(name, expert) for expert in range(self._config.moe.num_experts)]
        return [PlannedTensor(own, shape, "F32", partial(load, own)) for own in names]

    def _word_table(self, initial: np.ndarray) -> np.ndarray:
        """The rows that are inherited, and for the others the new run's; every slot the same."""
        vocab_size = self._rows.vocab_size
        slot = initial[:vocab_size].copy()
        slot[self._rows.ours] = _shaped(
            self._dense.read("embedding.word"), (self._rows.source_vocab_size, *slot.shape[1:]), "embedding.word"
        )[self._rows.theirs]
        return np.tile(slot, (len(initial) // vocab_size, 1))  # (slots * V, d) <- (V, d)


def _shaped(value: np.ndarray, shape: Tuple[int, ...], name: str) -> np.ndarray:
    if value.shape != tuple(shape):
        raise InputError(
            f"{name}: the dense model has shape {list(value.shape)}; expected {list(shape)} as the configuration says"
        )
    return np.ascontiguousarray(value)
