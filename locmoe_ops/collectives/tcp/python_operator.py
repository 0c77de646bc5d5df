"""Python functions as operators of compiled graphs, on CPU.

MindSpore names the function by its address. A graph that was kept would call whatever has that address in another
process, so the name is one that every process gives: it follows from what the function does.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from mindspore import ops
from mindspore.ops.operations._pyfunc_registry import add_pyfunc

_NAMED = 1 << 62  # above every address
_made: Counter[str] = Counter()


def python_operator(
    function: Callable[..., Any], shape: Callable[..., Any], dtype: Callable[..., Any], name: str
) -> ops.Custom:
    """The operator that runs `function` on NumPy arrays.

    Args:
        function: what runs.
        shape, dtype: those of the result, from those of the inputs.
        name: says what the function does, with all that it depends on. Functions of one name are told apart by their
            order, since each may have a state of its own.
    """
    operator = ops.Custom(function, shape, dtype, func_type="pyfunc")
    _made[name] += 1
    digest = hashlib.sha256(f"{name} {_made[name]}".encode()).digest()
    number = _NAMED | int.from_bytes(digest[:7], "big")
    add_pyfunc(number, function)
    operator.add_prim_attr("fn_id", number)
    return operator


def is_named(operator: ops.Custom) -> bool:
    """Whether `operator` was made by `python_operator`."""
    return bool(operator.attrs.get("fn_id", 0) & _NAMED)
