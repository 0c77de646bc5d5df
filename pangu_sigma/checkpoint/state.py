"""Between a network's parameters and a checkpoint's tensors: what a rank writes, and what it reads."""

from dataclasses import replace
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mindspore import Tensor

from locmoe_ops.errors import InputError
from locmoe_ops.shard_spec import ShardSpec
from locmoe_ops.tensor_parallel import slice_of, whole_shape
from locmoe_ops.topology import ExpertPlacement, Topology
from pangu_sigma.checkpoint.names import expert_name, is_training_state
from pangu_sigma.checkpoint.parts import LocalTensor
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.state_entry import Named, Readable, Settable
from pangu_sigma.config.schema import Config
from pangu_sigma.errors import DamagedCheckpoint
from pangu_sigma.model.parameter_groups import is_expert_parameter
from pangu_sigma.runtime.runtime import Runtime

RANKS = "data-parallel ranks"  # entry of a header's sampler: among how many ranks the rows were shared out

Values = List[Tuple[Settable, np.ndarray]]


class RankLocation(NamedTuple):
    """This rank, as far as checkpoints are concerned."""

    topology: Topology
    rank: int
    local_experts: Tuple[int, ...]  # global ids, in the order of their leading axis


def writing_ranks(topology: Topology) -> List[int]:
    """Ranks that have something to write: the first replica of the experts, with all of its tensor-parallel ranks."""
    return list(range(topology.model_ranks))


def pieces(state: Sequence[Readable], place: RankLocation) -> List[LocalTensor]:
    """What this rank writes of `state`: of what several ranks hold, the first of them. The arrays may share memory with
    the parameters.

    What all ranks share is written by the tensor-parallel group of expert-parallel index 0; every rank of the first
    replica writes its own experts.
    """
    topology, rank = place.topology, place.rank
    if topology.edp_index(rank):
        return []
    expert_index, tensor_index = topology.ep_index(rank), topology.tp_index(rank)
    found: List[LocalTensor] = []
    for parameter in state:
        part = slice_of(parameter)
        if not parameter.shape or (part is None and tensor_index):
            continue
        if is_expert_parameter(parameter.name):
            found += _of_experts(parameter, place.local_experts, f"experts_{expert_index}_{tensor_index}.safetensors")
        elif not expert_index:
            found.append(LocalTensor(parameter.name, parameter.asnumpy(), part, f"dense_{tensor_index}.safetensors"))
    return found


def scalars(state: Sequence[Readable]) -> Dict[str, float]:
    """Values of the single numbers among `state`, which the manifest holds."""
    return {parameter.name: float(parameter.asnumpy()) for parameter in state if not parameter.shape}


def weights(state: Sequence[Settable]) -> List[Settable]:
    """Those that evaluation needs."""
    return [parameter for parameter in state if not is_training_state(parameter.name)]


def read_values(
    reader: CheckpointReader,
    state: Sequence[Settable],
    local_experts: Tuple[int, ...],
    why: Callable[[], str] = lambda: "",
) -> Values:
    """Every parameter of `state` with its value as this rank holds it, whatever the parallel degree that wrote it.

    Args: why: what to say beside a tensor that is missing or has another shape.

    Raises:
        DamagedCheckpoint: what is to be read is not as it was written.
        InputError: a tensor is missing or has another shape; names it.
    """
    try:
        return [(parameter, _read_one(reader, parameter, local_experts)) for parameter in state]
    except DamagedCheckpoint:
        raise
    except InputError as error:
        raise InputError(f"{error}{why()}") from None


def set_values(values: Values) -> None:
    """Gives parameters their values."""
    for parameter, value in values:
        parameter.set_data(Tensor(value))


def _of_experts(parameter: Readable, local_experts: Tuple[int, ...], shard: str) -> List[LocalTensor]:
    bank, part = parameter.asnumpy(), _of_one_expert(slice_of(parameter))
    return [
        LocalTensor(expert_name(parameter.name, expert), bank[index], part, shard)
        for index, expert in enumerate(local_experts)
    ]


def _of_one_expert(part: Optional[ShardSpec]) -> Optional[ShardSpec]:
    """The slice of a bank, whose first axis is the experts, as a slice of one expert's array."""
    return None if part is None else replace(part, axis=part.axis - 1)


def _read_one(reader: CheckpointReader, parameter: Named, local_experts: Tuple[int, ...]) -> np.ndarray:
    name, whole, part = parameter.name, whole_shape(parameter), slice_of(parameter)
    if not whole:
        if name not in reader.header.scalars:
            raise InputError(f"{reader.folder}: no number {name}; expected a checkpoint of the same model and router")
        return np.array(reader.header.scalars[name], np.float32)
    if not is_expert_parameter(parameter.name):
        _check_shape(reader, name, whole)
        return reader.read(name, part)
    for expert in local_experts:
        _check_shape(reader, expert_name(name, expert), whole[1:])
    return np.stack([reader.read(expert_name(name, expert), _of_one_expert(part)) for expert in local_experts])


def _check_shape(reader: CheckpointReader, name: str, expected: Tuple[int, ...]) -> None:
    found = reader.entry(name).shape
    if found != tuple(expected):
        raise InputError(
            f"{reader.folder}: tensor {name} has shape {list(found)}; expected {list(expected)} as the configuration says"
        )


def rank_location(config: Config, runtime: Runtime) -> RankLocation:
    """This rank and the experts that it holds."""
    topology = runtime.topology
    placement = ExpertPlacement(config.moe.num_experts, config.moe.num_groups, topology.expert, config.moe.placement)
    return RankLocation(topology, runtime.rank, placement.local_experts(topology.ep_index(runtime.rank)))
