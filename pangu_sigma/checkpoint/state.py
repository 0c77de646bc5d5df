"""Between a network's state and a checkpoint's tensors: what a rank writes, and what it reads.

Letters of shapes: L experts of this rank.
"""

from dataclasses import dataclass, replace
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mindspore import Parameter, Tensor

from locmoe_ops.errors import InputError
from locmoe_ops.shard_spec import ShardSpec
from locmoe_ops.tensor_parallel import slice_of
from locmoe_ops.topology import ExpertPlacement, Topology
from pangu_sigma.checkpoint.names import expert_name, is_set_anew, is_training_state
from pangu_sigma.checkpoint.parts import LocalTensor
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.config.schema import Config
from pangu_sigma.errors import DamagedCheckpoint
from pangu_sigma.model.parameter_groups import is_expert_parameter
from pangu_sigma.runtime.runtime import Runtime

RANKS = "data-parallel ranks"  # entry of a header's sampler: among how many ranks the rows were shared out


@dataclass(frozen=True)
class StateEntry:
    """A named array of the state of a run, wherever it is held: what checkpoints are made of and read into.

    Attributes:
        name: as checkpoints have it.
        shape: as this rank holds it; () for a single number.
        shard: the part of a whole that this rank holds; None: all of it.
        get: returns the array.
        set: takes an array of that shape.
    """

    name: str
    shape: Tuple[int, ...]
    shard: Optional[ShardSpec]
    get: Callable[[], np.ndarray]
    set: Callable[[np.ndarray], None]

    @property
    def whole_shape(self) -> Tuple[int, ...]:
        """Without tensor parallelism."""
        return self.shape if self.shard is None else self.shard.whole_shape(self.shape)


Values = List[Tuple[StateEntry, np.ndarray]]


def parameter_entries(parameters: Iterable[Parameter]) -> List[StateEntry]:
    """Parameters of MindSpore as entries of their own names, but for those that a run is given anew."""

    def entry_of(parameter: Parameter) -> StateEntry:
        def set_value(value: np.ndarray) -> None:
            parameter.set_data(Tensor(value))

        return StateEntry(parameter.name, tuple(parameter.shape), slice_of(parameter), parameter.asnumpy, set_value)

    return [entry_of(parameter) for parameter in parameters if not is_set_anew(parameter.name)]


class RankLocation(NamedTuple):
    """This rank, as far as checkpoints are concerned."""

    topology: Topology
    rank: int
    local_experts: Tuple[int, ...]  # global ids, in the order of their leading axis


def rank_location(config: Config, runtime: Runtime) -> RankLocation:
    """This rank and the experts that it holds."""
    topology = runtime.topology
    placement = ExpertPlacement(
        config.moe.num_experts, config.moe.num_groups, topology.expert, config.moe.expert_placement
    )
    return RankLocation(topology, runtime.rank, placement.local_experts(topology.ep_index(runtime.rank)))


def writing_ranks(topology: Topology) -> List[int]:
    """Ranks that have something to write: the first replica of the experts, with all of its tensor-parallel ranks."""
    return list(range(topology.model_ranks))


def local_tensors(state: Sequence[StateEntry], location: RankLocation) -> List[LocalTensor]:
    """What the rank at `location` writes of `state`: of what several ranks hold, the first of them. The arrays may
    share memory with the parameters.

    What all ranks share is written by the tensor-parallel group of expert-parallel index 0; every rank of the first
    replica writes its own experts.
    """
    topology, rank = location.topology, location.rank
    if topology.edp_index(rank):
        return []
    expert_index, tensor_index = topology.ep_index(rank), topology.tp_index(rank)
    found: List[LocalTensor] = []
    for entry in state:
        if not entry.shape or (entry.shard is None and tensor_index):
            continue
        if is_expert_parameter(entry.name):
            bank, shard = entry.get(), _of_one_expert(entry.shard)
            file = f"experts_{expert_index}_{tensor_index}.safetensors"
            for index, expert in enumerate(location.local_experts):
                found.append(LocalTensor(expert_name(entry.name, expert), bank[index], shard, file))
        elif not expert_index:
            found.append(LocalTensor(entry.name, entry.get(), entry.shard, f"dense_{tensor_index}.safetensors"))
    return found


def scalars(state: Sequence[StateEntry]) -> Dict[str, float]:
    """Values of the single numbers among `state`, which the manifest holds."""
    return {entry.name: float(entry.get()) for entry in state if not entry.shape}


def weights(state: Sequence[StateEntry]) -> List[StateEntry]:
    """Those of `state` that evaluation needs."""
    return [entry for entry in state if not is_training_state(entry.name)]


def read_values(
    reader: CheckpointReader,
    state: Sequence[StateEntry],
    local_experts: Tuple[int, ...],
    why: Callable[[], str] = lambda: "",
) -> Values:
    """Every entry of `state` with its value as this rank holds it, whatever the parallel degree that wrote it.

    Args:
        reader: of the checkpoint.
        state: what is to be read.
        local_experts: global ids of this rank's experts, in the order of their leading axis.
        why: what to say of a tensor that is missing or has another shape.

    Raises:
        DamagedCheckpoint: what is to be read is not as it was written.
        InputError: a tensor is missing or has another shape; names it.
    """
    try:
        return [(entry, _read_one(reader, entry, local_experts)) for entry in state]
    except DamagedCheckpoint:
        raise
    except InputError as error:
        raise InputError(f"{error}{why()}") from None


def set_values(values: Values) -> None:
    """Gives entries their values."""
    for entry, value in values:
        entry.set(value)


def _read_one(reader: CheckpointReader, entry: StateEntry, local_experts: Tuple[int, ...]) -> np.ndarray:
    name, whole = entry.name, entry.whole_shape
    if not whole:
        if name not in reader.header.scalars:
            raise InputError(f"{reader.folder}: no number {name}; expected a checkpoint of the same model and router")
        return np.array(reader.header.scalars[name], np.float32)
    if not is_expert_parameter(entry.name):
        _check_shape(reader, name, whole)
        return reader.read(name, entry.shard)
    names = [expert_name(name, expert) for expert in local_experts]
    for one in names:
        _check_shape(reader, one, whole[1:])
    shard = _of_one_expert(entry.shard)
    return np.stack([reader.read(one, shard) for one in names])  # (L, ...)


def _of_one_expert(shard: Optional[ShardSpec]) -> Optional[ShardSpec]:
    """The shard of a bank, whose first axis is the experts, as a shard of one expert's array."""
    return None if shard is None else replace(shard, axis=shard.axis - 1)


def _check_shape(reader: CheckpointReader, name: str, expected: Tuple[int, ...]) -> None:
    found = reader.entry(name).shape
    if found != tuple(expected):
        raise InputError(
            f"{reader.folder}: tensor {name} has shape {list(found)}; expected {list(expected)} as the configuration "
            "says"
        )
