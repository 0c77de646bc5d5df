"""What tells graphs apart: everything that is baked into them, and nothing that is not."""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from locmoe_ops.collectives.tcp.python_operator import python_operator
from pangu_sigma.runtime.compile_cache import key as key_module
from pangu_sigma.runtime.compile_cache.key import Unkeyed, graph_key

FACTOR = 2.0
X = (Tensor(np.zeros((2, 4), np.float32)),)


@dataclass(frozen=True)
class Choice:
    bias: float
    names: tuple


class Net(nn.Cell):
    slope = 1.0

    def __init__(self, mu=0.5, table=(1, 2, 3), table_dtype=np.int32, name="w", shape=(4, 4), choice=("a",), act=None):
        super().__init__()
        self.mu = mu
        self.table = Tensor(np.array(table, table_dtype))
        self.weight = Parameter(Tensor(np.random.rand(*shape).astype(np.float32)), name=name)
        self.choice = Choice(mu, choice)
        self.act = act if act is not None else ops.ReLU()
        self.inner = nn.CellList([nn.Dense(2, 2), nn.Dense(2, 2, has_bias=False)])

    def construct(self, x):
        return ops.matmul(x, self.weight) * self.mu * FACTOR * self.slope


def key(cell=None, inputs=X, options=None, **facts):
    cell = Net() if cell is None else cell
    return graph_key(cell, inputs, options or {}, facts).hexdigest()


def closing_over(number):
    return lambda x: x * number


def changed(change):
    cell = Net()
    change(cell)
    return cell


CELLS = {
    "a number of the Cell": lambda: Net(mu=0.25),
    "a number, as another type": lambda: Net(mu=Tensor(0.5)),
    "a constant tensor": lambda: Net(table=(1, 2, 4)),
    "its order": lambda: Net(table=(1, 3, 2)),
    "its type": lambda: Net(table_dtype=np.int64),
    "its shape": lambda: Net(table=((1, 2, 3),)),
    "a parameter's name": lambda: Net(name="v"),
    "a parameter's shape": lambda: Net(shape=(4, 8)),
    "whether it is trained": lambda: changed(lambda cell: setattr(cell.weight, "requires_grad", False)),
    "a field of a dataclass": lambda: Net(choice=("b",)),
    "an operator": lambda: Net(act=ops.GeLU()),
    "an operator's attribute": lambda: Net(act=ops.ReLU().add_prim_attr("recompute", False)),
    "an operator's argument": lambda: Net(act=ops.Softmax(0)),
    "a function": lambda: Net(act=closing_over(2)),
    "what a function closes over": lambda: Net(act=closing_over(3)),
    "training": lambda: changed(lambda cell: cell.set_train(True)),
    "an inner Cell's training": lambda: changed(lambda cell: cell.inner[1].set_train(True)),
    "an inner Cell more": lambda: changed(lambda cell: cell.inner.append(nn.Dense(2, 2))),
    "recomputation": lambda: changed(lambda cell: cell.inner[0].recompute()),
    "a flag": lambda: changed(lambda cell: cell.add_flags(fp16=True)),
}


def test_each_part_of_a_cell_counts():
    keys = {name: key(make()) for name, make in CELLS.items()}
    keys["the Cell itself"] = key()
    assert len(set(keys.values())) == len(CELLS) + 1, sorted(keys.items(), key=lambda item: item[1])


INPUTS = {
    "shape": (Tensor(np.zeros((2, 5), np.float32)),),
    "type": (Tensor(np.zeros((2, 4), np.float16)),),
    "one more": X + X,
    "a number in its place": (1.0,),
    "another number": (2.0,),
    "a tuple": (X,),
    "none": (),
}


def test_each_part_of_the_inputs_counts():
    keys = [key(inputs=inputs) for inputs in INPUTS.values()] + [key(), key(options={"x": X[0]})]
    assert len(set(keys)) == len(keys)


FACTS = {"rank": 1, "topology": "2 x 2", "configuration": "other", "jit": {"jit_level": "O1"}}


@pytest.mark.parametrize("name", FACTS)
def test_the_job_counts(name):
    assert key(**{name: FACTS[name]}) != key(**{name: "else"}) != key()


def _context(monkeypatch):
    found = ms.context._context().get_param(key_module.ms_ctx_param.max_call_depth)
    ms.set_context(max_call_depth=found + 1)
    return lambda: ms.set_context(max_call_depth=found)


PROCESS = {
    "version of MindSpore": lambda patch: patch.setattr(ms, "__version__", "2.9.0"),
    "version of NumPy": lambda patch: patch.setattr(np, "__version__", "1.0"),
    "a variable of MindSpore": lambda patch: patch.setenv("MS_DEV_GRAPH_KERNEL_FLAGS", "--enable_pass=x"),
    "context": _context,
    "a constant of the module": lambda patch: patch.setattr(sys.modules[__name__], "FACTOR", 3.0),
    "a method of the class": lambda patch: patch.setattr(Net, "construct", lambda self, x: x),
    "an attribute of the class": lambda patch: patch.setattr(Net, "slope", 2.0),
}


@pytest.mark.parametrize("case", PROCESS)
def test_the_process_counts(monkeypatch, case):
    before = key()
    undo = PROCESS[case](monkeypatch)
    after = key()
    if callable(undo):
        undo()
    monkeypatch.undo()
    assert after != before == key()


@pytest.mark.parametrize("changed_file", ["mine", "helper"])
def test_a_users_own_files_count(tmp_path, monkeypatch, changed_file):
    """A router's file, and what it takes from another."""
    files = {
        "helper": "def scale(x):\n    return x * 2\n",
        "mine": (
            "from mindspore import nn\nfrom helper import scale\n"
            "class Mine(nn.Cell):\n    def construct(self, x):\n        return scale(x)\n"
        ),
    }
    monkeypatch.syspath_prepend(str(tmp_path))

    def of_files():
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        import mine

        return key(mine.Mine())

    first = of_files()
    assert of_files() == first
    files[changed_file] += "# another one\n"
    assert of_files() != first


NOTHING = {
    "when it was made": Net,
    "parameters' numbers": lambda: changed(lambda cell: cell.weight.set_data(Tensor(np.ones((4, 4), np.float32)))),
}


@pytest.mark.parametrize("case", NOTHING)
def test_what_is_not_baked_in_does_not_count(case):
    assert key(NOTHING[case]()) == key()
    assert key(inputs=(Tensor(np.ones((2, 4), np.float32)),)) == key()


def test_another_process_gives_the_same_key():
    script = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[2]]\n"
        "import mindspore; mindspore.set_device('CPU')\n"
        "import test_key; print(test_key.key())"
    )
    root, here = os.getcwd(), os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    found = [
        subprocess.run([sys.executable, "-c", script, root, here], env=environment, capture_output=True, text=True)
        for _ in range(2)
    ]
    keys = [run.stdout.split() for run in found]
    assert keys[0] == keys[1] != [], found[0].stderr


HELD = {
    "a lock": lambda: threading.Lock(),
    "a Python function, named by its address": lambda: ops.Custom(lambda x: x, lambda s: s, lambda d: d, "pyfunc"),
}


@pytest.mark.parametrize("case", HELD)
def test_what_cannot_be_told_apart_is_not_kept(case):
    with pytest.raises(Unkeyed, match=r"^Net\.(act|_primitives)"):
        key(Net(act=HELD[case]()))


def test_python_functions_with_a_name_of_their_own():
    """The same name in every process; functions of one name are told apart by their order."""

    def make(name):
        return python_operator(lambda x: x, list, lambda d: d, name)

    first, again, other = make("sum 1"), make("sum 1"), make("sum 2")
    assert len({operator.attrs["fn_id"] for operator in (first, again, other)}) == 3
    assert key(Net(act=first)) != key(Net(act=again)) != key(Net(act=other))
    found = graph_key(Net(act=first), X, {}, {})
    assert found.exchanges and not graph_key(Net(), X, {}, {}).exchanges


def test_a_parameter_that_mindspore_would_not_find_again():
    outside = Parameter(Tensor(np.ones(2, np.float32)), name="outside")
    with pytest.raises(Unkeyed, match="the parameter outside is not among those of the Cell"):
        key(Net(act=lambda x: x + outside))


def test_a_graph_from_a_file_has_no_key(tmp_path):
    """What is in it cannot be seen; two files would have the same."""
    ms.export(Net(), *X, file_name=str(tmp_path / "net"), file_format="MINDIR")
    with pytest.raises(Unkeyed, match="GraphCell.graph"):
        key(nn.GraphCell(ms.load(str(tmp_path / "net.mindir"))))
