"""Which operators of an exported graph are kernels: what a device launches, counted by Cell.

In kernel-by-kernel mode (O0) each operator that computes or moves something is one launch. What MindSpore's backend
adds to an exported graph is not in it: casts and copies that a kernel's formats ask for, and the parts of the few
operators that it rewrites (docs/operators.md). What it merges is not seen, either.
"""

from __future__ import annotations

from collections import Counter
from typing import Iterable, Mapping, NamedTuple

_VALUE = "a value that is there before the step"
_ORDER = "says what comes first"
_TUPLE = "names several tensors together"
_VIEW = "the same memory in another shape"
# From MindSpore's sources: virtual nodes; the operators of AclHelper::IsNopNode; views, which set strides on the host.
WITHOUT_KERNEL: Mapping[str, str] = {
    "Constant": _VALUE,
    "Load": _VALUE,
    "Depend": _ORDER,
    "UpdateState": _ORDER,
    "MakeTuple": _TUPLE,
    "TupleGetItem": _TUPLE,
    "make_tuple": _TUPLE,
    "make_list": _TUPLE,
    "list_getitem": _TUPLE,
    "ExpandDims": _VIEW,
    "Flatten": _VIEW,
    "FlattenGrad": _VIEW,
    "Reshape": _VIEW,
    "Squeeze": _VIEW,
    "TransposeExtView": _VIEW,
    "Return": "the graph's end",
}
LEVELS = 3  # of Cells below the network that are told apart


class GraphOperator(NamedTuple):
    """An operator of an exported graph.

    Attributes:
        name: of its primitive.
        where: Cell by Cell from the step down, as MindSpore says. It may name another Cell of the same kind: what two
            Cells both compute is computed once, and named after one of them.
        upkeep: whether it converts a parameter or adds to its accumulated gradient: neither forward nor backward pass.
    """

    name: str
    where: str
    upkeep: bool = False

    @property
    def launches(self) -> bool:
        """Whether it is a kernel."""
        return self.name not in WITHOUT_KERNEL


def launches(operators: Iterable[GraphOperator]) -> int:
    """How many of `operators` are kernels."""
    return sum(one.launches for one in operators)


def pass_launches(operators: Iterable[GraphOperator]) -> int:
    """How many of `operators` are kernels of the forward and the backward pass."""
    return launches(one for one in operators if not one.upkeep)


def by_cell(operators: Iterable[GraphOperator], levels: int = LEVELS) -> dict[str, int]:
    """Kernels of each Cell, forward and backward, in the order of the graph.

    Args:
        operators: of a graph.
        levels: Cells further down count as the one that they are in.
    """
    return dict(Counter(_cell(one.where, levels) for one in operators if one.launches))


def by_operator(operators: Iterable[GraphOperator]) -> dict[str, int]:
    """Kernels of each primitive, the most frequent first."""
    return dict(Counter(one.name for one in operators if one.launches).most_common())


def _cell(where: str, levels: int) -> str:
    """The Cell by its name in the network, or in the step where it is none of the network's."""
    network = where.partition("objective/network/")[2]
    return "/".join((network or where).split("/")[:levels])
