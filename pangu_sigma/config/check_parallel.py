"""Checks of degrees and batch sizes: what must divide what. All raise `InputError` naming keys and values."""

from typing import Optional, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.config.derived import ffn_hidden_size
from pangu_sigma.config.schema import Config


def check_parallel(config: Config, world_size: int) -> None:
    """Checks degrees and batch sizes of a job of `world_size` ranks, and the cluster that `moe.logical_topology`
    describes.

    Raises:
        InputError: two of them do not fit; names both.
    """
    parallel = config.parallel
    ranks = ("the number of ranks", world_size)
    node = ("parallel.ranks_per_node", parallel.ranks_per_node or world_size)
    group = parallel.expert * parallel.tensor
    # The most frequent of first errors, a job whose groups are larger than it, has three ways out.
    enough = -(-world_size // group) * group
    require_divides(
        ("parallel.expert x parallel.tensor", group),
        ranks,
        f"start {enough} ranks (`pangu-sigma launch --ranks-per-node {enough}` on one machine), or set "
        f"parallel.expert and parallel.tensor so that their product divides {world_size}, or, for a command that only "
        f"checks, give it --ranks {enough}",
    )
    _check_cluster("parallel", ranks, node, parallel.expert, config.moe.num_experts, parallel.tensor)
    # What a tensor-parallel group shares out, in equal parts; it lies on one node, since it sums in every layer.
    tensor, model = ("parallel.tensor", parallel.tensor), config.model
    require_divides(tensor, node)
    require_divides(tensor, ("model.num_heads", model.num_heads))
    name = "4 x model.hidden_size" if model.ffn_hidden_size is None else "model.ffn_hidden_size"
    require_divides(tensor, (name, ffn_hidden_size(config)))
    layout = config.moe.logical_topology
    if layout is not None:
        ranks = ("moe.logical_topology.world_size", layout.world_size)
        node = ("moe.logical_topology.ranks_per_node", layout.ranks_per_node)
        _check_cluster("moe.logical_topology", ranks, node, layout.expert, config.moe.num_experts)
        require_divides(ranks, ("train.global_batch_size", config.train.global_batch_size))
    sequences = config.train.global_batch_size
    replicas = world_size // parallel.tensor
    require_divides(
        ("the number of data-parallel ranks", replicas),
        ("train.global_batch_size", sequences),
        f"set train.global_batch_size to a multiple of {replicas}, as in {-(-sequences // replicas) * replicas}, or "
        "start a number of ranks that divides it",
    )
    micro = config.train.micro_batch_size
    if micro is not None and sequences % (replicas * micro):
        raise InputError(
            f"train.global_batch_size ({sequences}) is not a multiple of train.micro_batch_size ({micro}) x "
            f"{replicas} data-parallel ranks = {replicas * micro}; expected a multiple, as in "
            f"{-(-sequences // (replicas * micro)) * replicas * micro}, or a smaller train.micro_batch_size"
        )


def _check_cluster(
    prefix: str, ranks: Tuple[str, int], node: Tuple[str, int], expert: int, num_experts: int, tensor: int = 1
) -> None:
    """One cluster's degrees: nodes of equal size, expert groups that fill nodes evenly, experts that fill groups."""
    require_divides(node, ranks)
    degree = (f"{prefix}.expert", expert)
    require_divides(degree, ranks)
    require_divides(degree, ("moe.num_experts", num_experts))
    name, group = (degree[0], expert) if tensor == 1 else (f"{degree[0]} x {prefix}.tensor", expert * tensor)
    if group % node[1] and node[1] % group:
        raise InputError(
            f"{name} ({group}) and {node[0]} ({node[1]}) do not fit; expected one to be a multiple of the other"
        )


def require_divides(small: Tuple[str, int], large: Tuple[str, int], remedy: Optional[str] = None) -> None:
    """Requires that `small` divides `large`, both with the names to call them by.

    Raises:
        InputError: it does not; says `remedy`, or the divisors of `large` next to `small`, below and above it.
    """
    (small_name, value), (large_name, whole) = small, large
    if whole % value == 0:
        return
    reach = 10_000  # numbers tried on either side, since a key may hold any number
    below = next((n for n in range(min(value, whole), max(0, value - reach), -1) if whole % n == 0), 1)
    above = next((n for n in range(value, min(whole, value + reach) + 1) if whole % n == 0), whole)
    near = str(below) if below == above else f"{below} or {above}"
    raise InputError(
        f"{small_name} ({value}) does not divide {large_name} ({whole}); "
        + (remedy or f"expected a divisor, as in {near}")
    )
