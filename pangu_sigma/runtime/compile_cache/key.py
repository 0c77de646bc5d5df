"""What a graph is made of, as a key: two graphs have the same key only if everything that is baked into them is equal.

MindSpore compiles a Cell from its code, its attributes, the types of its inputs, and the context. All of these are
written down here, as a whole: an attribute that does not matter makes a key differ in vain, and costs a compilation;
one that was left out would give a run another run's numbers. What cannot be written down makes the graph one that is
not kept (`Unkeyed`).
"""

import enum
import functools
import hashlib
import os
import platform
import sys
import types
import weakref
from pathlib import Path
from typing import Any, Dict, List, Sequence, Set

import numpy as np

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore._c_expression import ms_ctx_param

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.collectives.tcp.python_operator import is_named
from pangu_sigma.runtime.launch import CLUSTER_VARIABLES, RANK_VARIABLES

# Attributes of every Cell that MindSpore keeps its books in: they tell when the Cell was made, how often it ran, and
# what its parameters are called, which the parameters themselves say too.
BOOKKEEPING = {
    "_id",
    "_create_time",
    "arguments_key",
    "_compile_cache",
    "_phase_cache",
    "_compile_phase",
    "_exist_objs",
    "_exist_names",
    "_compiled",
    "_init_flag",
    "_lazy_construct_sig",
    "_lazy_user_parameters",
    "_has_mutable_args_list",
    "_is_check_and_refresh",
    "current_phase",
    "compile_phase",
}
NAMES = {"_param_prefix", "_scope"}  # which follow from the place of a Cell in the network
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), slice, range, Path, np.dtype)
_TIME_MADE = ("mindspore.graph.api", "hash_obj")  # what `mindspore.jit` closes over to number its functions
_LIBRARIES = ("mindspore", "numpy", "builtins", "pybind11_builtins")
_OWN_CONTEXT = {"device_id", "enable_compile_cache", "compile_cache_path"}  # which do not reach graphs
CACHE_VARIABLES = ("MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH", "MS_DEV_FORCE_USE_COMPILE_CACHE")
_NOT_IN_GRAPHS = {*RANK_VARIABLES, *CLUSTER_VARIABLES, *CACHE_VARIABLES}


class Unkeyed(Exception):
    """Something in the graph has no content that could be compared: the message names it."""


class GraphKey:
    """A digest that grows with all that is added to it.

    Args:
        named: whether the names of parameters count.

    Attributes:
        parameters: that were met, by id.
        exchanges: whether something was met that exchanges tensors with other ranks.
    """

    def __init__(self, named: bool = True) -> None:
        self._named = named
        self.parameters: Dict[int, Parameter] = {}
        self.exchanges = False
        self._digest = hashlib.sha256()
        self._met: Dict[int, int] = {}
        self._kept: List[Any] = []  # ids stay theirs while this lives
        self._files: Set[str] = set()
        self._kinds: Set[type] = set()

    def hexdigest(self) -> str:
        """The key, 64 hexadecimal digits."""
        return self._digest.hexdigest()

    def add(self, value: Any) -> None:
        """Adds a value with all that it holds.

        Args:
            value: of any type.

        Raises:
            Unkeyed: it holds something without content that could be compared, such as a lock.
        """
        if isinstance(value, enum.Enum):
            return self._put("enum", f"{_name(type(value))}.{value.name}")
        if isinstance(value, _PLAIN):
            return self._put(type(value).__name__, repr(value))
        if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
            return self._put(f"array {value.dtype.str} {value.shape}", np.ascontiguousarray(value).tobytes())
        if id(value) in self._met:
            return self._put("again", str(self._met[id(value)]))
        self._met[id(value)] = len(self._met)
        self._kept.append(value)
        if isinstance(value, Tensor):
            return self._add_tensor(value)
        if isinstance(value, dict):
            self._put("dict", f"{_name(type(value))} {len(value)}")
            for name, entry in value.items():  # in their order: outputs of a graph have it
                self.add(name)
                self.add(entry)
        elif isinstance(value, (list, tuple)):
            self._put("sequence", f"{_name(type(value))} {len(value)}")
            for entry in value:
                self.add(entry)
        elif isinstance(value, (set, frozenset)) and all(isinstance(entry, _PLAIN) for entry in value):
            self._put("set", repr(sorted(map(repr, value))))
        elif isinstance(value, type):
            self._add_source(value)
            self._put("class", _name(value))
        elif isinstance(value, types.ModuleType):
            self._put("module", value.__name__)
        else:
            self._add_object(value)

    def _add_object(self, value: Any) -> None:
        if isinstance(value, nn.Cell):
            skipped = BOOKKEEPING if self._named else BOOKKEEPING | NAMES
            made_late = {k for k, v in vars(value).items() if k.startswith("_lazy_") and not v}  # when asked for, empty
            held = {k: v for k, v in vars(value).items() if k not in skipped | made_late}
            self._add_named("cell", value, held)
        elif isinstance(value, ops.Primitive):
            self._add_primitive(value)
        elif isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, types.MethodType):
            self._put("method", value.__func__.__qualname__)
            self.add(value.__self__)
            self.add(value.__func__)
        elif isinstance(value, functools.partial):
            self._put("partial", "")
            self.add((value.func, value.args, value.keywords))
        elif isinstance(value, Collectives):
            self._put("collectives", f"{_name(type(value))} {value.rank} {value.topology} {value.gathered}")
        elif isinstance(value, (types.BuiltinFunctionType, types.WrapperDescriptorType)):
            self._put("builtin", f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__module__") else "")
        elif isinstance(value, ms.dtype.Type) or hasattr(type(value), "__members__"):  # of MindSpore's C++
            self._put("type", f"{_name(type(value))} {value}")
        elif isinstance(value, (weakref.ref, weakref.WeakKeyDictionary)):
            raise Unkeyed(f"a {_name(type(value))}")
        else:
            self._add_plain_object(value)

    def _add_plain_object(self, value: Any) -> None:
        """By the attributes of an object; one that keeps its content elsewhere, as those of C do, has none."""
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        if not hasattr(value, "__dict__") and not slots:
            raise Unkeyed(f"a {_name(type(value))}")
        held = dict(getattr(value, "__dict__", {}))
        held.update({name: getattr(value, name) for name in slots if hasattr(value, name) and name[:2] != "__"})
        self._add_named("object", value, held)

    def _add_named(self, kind: str, value: Any, attributes: Dict[str, Any]) -> None:
        self._add_source(type(value))
        self._put(kind, f"{_name(type(value))} {len(attributes)}")
        for name, entry in attributes.items():
            self._put("attribute", str(name))
            try:
                self.add(entry)
            except Unkeyed as error:
                raise Unkeyed(f"{type(value).__name__}.{name}: {error}") from None

    def _add_tensor(self, value: Tensor) -> None:
        """A constant by its numbers; a parameter, whose numbers are the graph's input, by all else."""
        about = f"{value.shape} {value.dtype}"
        if isinstance(value, Parameter):
            self.parameters[id(value)] = value
            name = value.name if self._named else ""
            return self._put("parameter", f"{name} {about} {value.requires_grad} {value.layerwise_parallel}")
        if -1 in value.shape or None in value.shape:
            return self._put("tensor of any size", about)
        numbers = value.float() if value.dtype == ms.bfloat16 else value
        self._put(f"tensor {about}", np.ascontiguousarray(numbers.asnumpy()).tobytes())

    def _add_primitive(self, value: ops.Primitive) -> None:
        """By class, attributes and what else it holds. A Python function that it runs has to be one that has the same
        name in every process.
        """
        held = {name: entry for name, entry in vars(value).items() if name != "attrs"}
        if isinstance(value, ops.Custom):
            if not is_named(value):
                raise Unkeyed(f"the Python function {getattr(value.func, '__qualname__', value.func)}")
            self.exchanges = True
            held = {name: held[name] for name in ("out_shape", "out_dtype", "func_type") if name in held}
        self.exchanges |= "group" in value.attrs
        self._add_named("primitive", value, {"name": value.name, "attrs": dict(value.attrs), **held})

    def _add_function(self, value: types.FunctionType) -> None:
        """By its code, what it closes over, its defaults, and the constants and functions of its module that it
        names.
        """
        code = value.__code__
        self._put("function", f"{value.__module__}.{value.__qualname__} {code.co_firstlineno} {code.co_code.hex()}")
        self._add_file(value.__module__)
        self.add([entry for entry in code.co_consts if not isinstance(entry, types.CodeType)])
        self.add((value.__defaults__, value.__kwdefaults__))
        for name, cell in zip(code.co_freevars, value.__closure__ or ()):
            if (value.__globals__["__name__"], name) == _TIME_MADE:  # its own module, though it wraps another's
                continue
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not filled yet
                self._put("empty", "")
        if not str(value.__module__).startswith(_LIBRARIES):
            self._add_globals(value)

    def _add_globals(self, value: types.FunctionType) -> None:
        for name in value.__code__.co_names:
            entry = value.__globals__.get(name)
            if isinstance(entry, (bool, int, float, str, tuple, Tensor, np.ndarray, types.FunctionType)):
                self._put("global", name)
                self.add(entry)

    def _add_source(self, kind: type) -> None:
        """The file that a class stands in, and what its methods name of their modules."""
        if kind.__module__.startswith(_LIBRARIES) or kind in self._kinds:
            return
        self._kinds.add(kind)
        for parent in kind.__mro__:
            self._add_file(parent.__module__)
            if parent.__module__.startswith(_LIBRARIES):
                continue
            for name, entry in vars(parent).items():
                if isinstance(entry, types.FunctionType):  # it may stand in for the one in the file
                    self._put("method", f"{name} {entry.__code__.co_code.hex()}")
                    self._add_file(entry.__module__)
                    self._add_globals(entry)
                elif isinstance(entry, (bool, int, float, str)):
                    self._put("class attribute", f"{name} {entry!r}")

    def _add_file(self, module: str) -> None:
        """The content of a module's file, once; those of MindSpore and NumPy go by their versions."""
        if module in self._files or not module or module.startswith(_LIBRARIES):
            return
        self._files.add(module)
        path = getattr(sys.modules.get(module), "__file__", None)
        if path is None:
            raise Unkeyed(f"code of the module {module}, which has no file")
        self._put(f"file {module}", Path(path).read_bytes())

    def _put(self, kind: str, content: "str | bytes") -> None:
        content = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
        self._digest.update(f"{kind} {len(content)}:".encode("utf-8", "backslashreplace") + content)


def graph_key(cell: nn.Cell, inputs: Sequence[Any], options: Dict[str, Any], facts: Dict[str, Any]) -> GraphKey:
    """The key of the graph that MindSpore is about to compile.

    Args:
        cell: of which.
        inputs, options: its positional and named inputs, of which a tensor's numbers do not count.
        facts: what else it depends on, besides this process (`process_facts`): the program's code, the job.

    Raises:
        Unkeyed: it cannot be told from others, or could not be taken up in another process.
    """
    key = GraphKey()
    key.add({**process_facts(), **facts})
    key.add(cell)
    key.add([_kind_of(value) for value in inputs])
    key.add({name: _kind_of(value) for name, value in options.items()})
    given = {id(parameter) for parameter in cell.parameters_dict().values()}
    for place, parameter in key.parameters.items():
        if place not in given:  # MindSpore would make another one of that name
            raise Unkeyed(f"the parameter {parameter.name} is not among those of the Cell")
    return key


def _kind_of(value: Any) -> Any:
    """What a graph knows of an input: shape and type of a tensor, all of anything else."""
    if isinstance(value, Tensor) and not getattr(value, "const_arg", False):
        return ("input", str(value.shape), str(value.dtype), type(value).__name__, getattr(value, "name", ""))
    return value


def process_facts() -> Dict[str, Any]:
    """What all graphs of this process have in common: versions, MindSpore's context and its environment."""
    holder, members = ms.context._context(), ms_ctx_param.__members__
    context = {name: repr(holder.get_param(member)) for name, member in members.items() if name not in _OWN_CONTEXT}
    variables = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(("MS_", "ASCEND_", "CANN_")) and name not in _NOT_IN_GRAPHS
    }
    return {
        "mindspore": [ms.__version__, (Path(ms.__file__).with_name(".commit_id").read_text())],
        "numpy": np.__version__,
        "python": sys.version,
        "machine": platform.machine(),
        "context": {**context, "jit_config": repr(ms.context.get_jit_config())},
        "environment": variables,
    }


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
