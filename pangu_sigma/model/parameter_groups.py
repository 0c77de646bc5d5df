"""Which parameters are treated alike, by name: what is an expert, what decays, what is a linear map, what a
tensor-parallel group splits, and in which order and messages gradients are summed.

A name is that of a parameter of `PanGuSigma`; with the prefix of a moment (`adam_m.`) it is told to belong to the same
kind. Needs no MindSpore, so that a job can be planned without it.
"""

from itertools import groupby
from typing import Any, Callable, Iterable, List, Optional, Protocol, Sequence, Tuple, TypeVar

from locmoe_ops.shard_spec import ShardSpec

BUCKET_ELEMENTS = 16 * 1024 * 1024  # 64 MB of float32 a message

_NOT_DECAYING = ("b_", "bias", "gamma", "beta")  # how the last words of biases and norms begin
_SPLIT_BY_OUTPUT = ("query", "key", "value", "w_in")  # linear maps of which a rank has some outputs, and their biases
_SPLIT_BY_INPUT = ("project", "w_out")  # linear maps of which a rank has some inputs


class NamedParameter(Protocol):
    """A parameter, built or planned."""

    @property
    def name(self) -> str: ...


P = TypeVar("P", bound=NamedParameter)


def is_expert_parameter(name: str) -> bool:
    """True for the parameters of an expert bank: they differ between expert-parallel ranks."""
    return ".experts." in name


def decays(name: str) -> bool:
    """Matrices and embeddings decay; biases and norms do not."""
    return not name.rsplit(".", 1)[-1].startswith(_NOT_DECAYING)


def is_map_weight(name: str) -> bool:
    """True for the weight of a linear map of attention or of a dense feed-forward network (not for a router's gate)."""
    return name.endswith(".weight") and ".router." not in name


def reads_copy(name: str) -> bool:
    """True for what products read in the matmuls' type: weights and biases of linear maps and experts, and the word
    table (see `pangu_sigma.train.half_copies`); other parameters are read in float32 alone.
    """
    of_map = name.endswith((".weight", ".bias")) and ".router." not in name
    return of_map or is_expert_parameter(name) or name == "embedding.word"


def split_axis(name: str) -> Optional[int]:
    """The axis along which the ranks of a tensor-parallel group split a parameter; None: each holds the whole of it."""
    *_, owner, last = name.split(".")
    if is_expert_parameter(name):  # w_in (L, d, f), b_in (L, 1, f), w_out (L, f, d), b_out (L, 1, d)
        return {"w_in": 2, "b_in": 2, "w_out": 1}.get(last)
    if (owner, last) == ("embedding", "word") or owner in _SPLIT_BY_OUTPUT:
        return 0
    return 1 if owner in _SPLIT_BY_INPUT and last == "weight" else None


def group_key(name: str) -> Tuple[bool, bool]:
    """(in an expert, does not decay): parameters of one key are updated alike."""
    return is_expert_parameter(name), not decays(name)


def ordered_parameters(parameters: Iterable[P], shard_of: Callable[[P], Optional[ShardSpec]]) -> List[P]:
    """Trainable parameters in the order of every gradient list: first the weights of linear maps, as the backward pass
    comes by them, then other dense parameters, then experts; in the last two decaying ones first, and of these those
    that are held whole.

    Neighbours that are treated alike can be handled by one mapped function, which MindSpore compiles far faster than a
    loop.

    Args:
        parameters: all of a network, in the network's own order.
        shard_of: gives the part that this rank holds of a parameter, or None where it holds the whole of it.
    """
    found = list(parameters)
    maps = [parameter for parameter in found if is_map_weight(parameter.name)][::-1]
    rest = [parameter for parameter in found if not is_map_weight(parameter.name)]
    return maps + sorted(rest, key=lambda parameter: (*group_key(parameter.name), shard_of(parameter) is not None))


def plan_buckets(sizes: Sequence[int], limit: int = BUCKET_ELEMENTS) -> List[Tuple[int, int]]:
    """Ranges (start, end) of neighbours, each of at most `limit` elements in all (or one larger tensor).

    Args:
        sizes: elements of each tensor, in gradient order.
        limit: elements of a message.
    """
    buckets, start, filled = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and filled + size > limit:
            buckets.append((start, i))
            start, filled = i, 0
        filled += size
    return buckets + [(start, len(sizes))] if sizes else []


def plan_alike(sizes: Sequence[int], kinds: Sequence[Any]) -> List[Tuple[int, int]]:
    """`plan_buckets` of `sizes`, each bucket of tensors of one kind; `kinds` has an entry a tensor."""
    buckets, first = [], 0
    for _, group in groupby(kinds):
        last = first + len(list(group))
        buckets += [(first + start, first + end) for start, end in plan_buckets(sizes[first:last])]
        first = last
    return buckets


def stretch_of(sizes: Sequence[int], ranks: int) -> int:
    """Elements that each of `ranks` has of a bucket of tensors of these `sizes`; the last one's may exceed its end."""
    return -(-sum(sizes) // ranks)
