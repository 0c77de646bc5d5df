"""What MindSpore's recomputation (`Cell.recompute`) has to be told: which operators are of the backward pass, and which
run only once.

It computes forward operators anew for those of the backward pass, and tells both by their scopes: those of a marked
Cell begin with `recompute_`, those of gradients that it has derived with `Gradients`. What a `bprop` holds has the
scope of its Cell, like a forward operator: what it reads of the forward pass would be kept, and nobody would know.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple, TypeVar

from mindspore import Tensor, nn, ops

_MARK = "recompute_"
_Operator = TypeVar("_Operator", bound=ops.Primitive)


class OwnGradient(nn.Cell):
    """A Cell whose `bprop` reads what the forward pass has made: it runs its operators in a `ForwardPart`, and has the
    body of its `bprop` in a `BackwardPart`. Its own scope is never marked, else those that it calls would be.
    """

    def get_scope(self) -> Optional[str]:
        """That of the Cell, without the mark."""
        scope: Optional[str] = super().get_scope()
        return scope[len(_MARK) :] if scope is not None and scope.startswith(_MARK) else scope


class ForwardPart(nn.Cell):
    """An operator as a Cell.

    Args:
        operator: any primitive. Inputs and outputs: its own.
    """

    def __init__(self, operator: ops.Primitive) -> None:
        super().__init__()
        self.operator = operator

    def construct(self, *inputs: Any) -> Any:
        return self.operator(*inputs)


class BackwardPart(nn.Cell):
    """The body of a `bprop`, as a Cell of the backward pass."""

    def get_scope(self) -> str:
        """That of the Cell, as of a gradient that MindSpore has derived."""
        return f"Gradients/{super().get_scope()}"


class BackwardFromHere(OwnGradient):
    """Passes `x` on; its gradient becomes an operator of the backward pass, if it was not one: a product with 1.

    What is computed anew waits for the first such operator that enters its layer. A gradient that a `bprop` with a
    parameter returns is none: MindSpore ties it to its reading of the parameter by a `Depend` of the Cell's own scope.
    What is computed anew would then wait for a later one, which may be made of it: a cycle.

    Inputs: x, a tensor. Output: x.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backward = _Gradient()

    def construct(self, x: Tensor) -> Tensor:
        return x

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> Tuple[Tensor]:
        """The gradient of `x`: `dout`, that of `out`."""
        return (self.backward(dout),)


class _Gradient(BackwardPart):
    def construct(self, dout: Tensor) -> Tensor:
        return dout * 1.0


def once(operator: _Operator) -> _Operator:
    """The `operator`, marked: its result is kept also where what surrounds it is computed anew."""
    operator.add_prim_attr("recompute", False)  # as `operator.recompute(False)`, which PyNative mode may refuse
    return operator
