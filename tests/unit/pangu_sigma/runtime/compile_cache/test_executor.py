"""Graphs taken from a folder compute what compiled ones do, and never another's numbers."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from locmoe_ops.collectives.tcp.python_operator import python_operator
from pangu_sigma.runtime.compile_cache import executor
from pangu_sigma.runtime.compile_cache.executor import CompileCache, use_compile_cache
from pangu_sigma.runtime.compile_cache.key import GraphKey
from pangu_sigma.runtime.compile_cache.store import MAGIC, GraphStore

ONES = np.ones((2, 2), np.float32)


class Net(nn.Cell):
    """x w + c, scaled by a number; w grows by c with each call. A Python function multiplies by `times`."""

    def __init__(self, constant=1.0, scale=1.0, times=None):
        super().__init__()
        self.weight = Parameter(Tensor(ONES), name="weight")
        self.constant = Tensor(constant * ONES)
        self.scale = scale
        self.function = nn.Identity()
        if times is not None:
            self.function = Multiply(times)

    def construct(self, x):
        ops.assign_add(self.weight, self.constant)
        return self.function(ops.matmul(x, self.weight) * self.scale + self.constant)


class Multiply(nn.Cell):
    def __init__(self, times):
        super().__init__()
        self.run = python_operator(lambda x: x * times, list, lambda dtype: dtype, f"times {times}")

    def construct(self, x):
        return self.run(x)


def expected(constant=1.0, scale=1.0, times=None, calls=1):
    """The same in NumPy, by hand: x is ones, so that x w has 2 (1 + calls c) everywhere."""
    return (2 * (1 + calls * constant) * scale + constant) * (1 if times is None else times)


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    use_compile_cache(None)


@pytest.fixture
def start(tmp_path):
    """Begins a job: a new cache over the same folder, whose counts are those of the job."""

    def begin(rank=0, agree=lambda found: found, **facts):
        cache = CompileCache(GraphStore(tmp_path / "kept"), {"rank": rank, **facts}, agree)
        use_compile_cache(cache)
        return cache

    return begin


def run(calls=1, x=ONES, **how):
    net = Net(**how)
    for _ in range(calls):
        result = net(Tensor(x)).asnumpy()
    assert net.weight.asnumpy()[0, 0] == 1 + calls * how.get("constant", 1.0)
    return float(result[0, 0])


VARIANTS = [{}, {"constant": 2.0}, {"scale": 3.0}, {"times": 2}, {"times": 5}, {"times": 5, "scale": 3.0}]


def test_each_graph_is_found_again_in_any_order(start):
    cold = start()
    for how in VARIANTS:
        assert run(calls=2, **how) == expected(calls=2, **how)
    assert (cold.taken, cold.kept) == (0, len(VARIANTS))
    use_compile_cache(None)
    assert run(scale=7.0) == expected(scale=7.0)  # compiled in between, without the folder
    warm = start()
    for how in reversed(VARIANTS[:3]):  # a function of one name has a number more in this process: see the next test
        assert run(calls=2, **how) == expected(calls=2, **how)
    assert (warm.taken, warm.kept) == (3, 0)


def test_a_function_of_the_same_name_is_another_one(start):
    """Each may have a state of its own, and a graph must call that of its own Cell."""
    cache = start()
    assert [run(times=9), run(times=9)] == [expected(times=9)] * 2
    assert (cache.taken, cache.kept) == (0, 2)


def test_a_graph_that_is_taken_leaves_its_cells_as_compiling_would(start):
    """Of two graphs over the same Cells, as training and validation, the second has the key that it had."""

    class Twice(nn.Cell):
        def __init__(self, net):
            super().__init__(auto_prefix=False)
            self.net = net

        def construct(self, x):
            return self.net(x) * 2.0

    for expected_counts in ((0, 2), (2, 0)):
        cache, net = start(), Net()
        assert float(net(Tensor(ONES)).asnumpy()[0, 0]) == expected()
        assert float(Twice(net)(Tensor(ONES)).asnumpy()[0, 0]) == 2 * expected(calls=2)
        assert (cache.taken, cache.kept) == expected_counts


@pytest.mark.parametrize("changed", [{"rank": 1}, {"topology": "2 x 2"}, {"configuration": "another"}])
def test_another_job_takes_none(start, changed):
    start()
    run()
    other = start(**changed)
    assert run() == expected() and (other.taken, other.kept) == (0, 1)


def test_other_code_takes_none_and_code_that_changed_meanwhile_leaves_none(start, monkeypatch):
    """Graphs of a process are those of the files that it started with."""
    for versions, expected_counts in (("aa", (0, 1)), ("bc", (0, 0)), ("bb", (0, 1)), ("ac", (1, 0))):
        monkeypatch.setattr(executor, "code_version", partial(next, iter(versions)))
        cache = start()
        assert run() == expected() and (cache.taken, cache.kept) == expected_counts


def _without_numbers_of_tensors(self, value):
    self._put("tensor", f"{value.shape} {value.dtype}")
    if isinstance(value, Parameter):
        self.parameters[id(value)] = value


def _without_floats(self, value, add=GraphKey.add):
    return add(self, 0.0 if isinstance(value, float) else value)


LACKING = {
    "constants": ("_add_tensor", _without_numbers_of_tensors, {"constant": 1.0}, {"constant": 2.0}),
    "numbers": ("add", _without_floats, {"scale": 1.0}, {"scale": 3.0}),
}


@pytest.mark.parametrize("case", LACKING)
def test_a_key_that_lacked_a_part_would_give_another_graphs_numbers(start, monkeypatch, case):
    """What the key is for; the same graphs are told apart with all of it."""
    name, lacking, first, second = LACKING[case]
    with monkeypatch.context() as patch:
        patch.setattr(GraphKey, name, lacking)
        start()
        net = Net(**first)
        net(Tensor(ONES))
        wrong = start()
        assert float(Net(**second)(Tensor(ONES)).asnumpy()[0, 0]) == expected(**first) != expected(**second)
        assert wrong.taken == 1
    start()
    assert run(**first) == expected(**first) and run(**second) == expected(**second)


def test_other_shapes_and_types_are_other_graphs(start):
    cache = start()
    assert run() == expected()
    assert Net()(Tensor(np.ones((1, 2), np.float32))).asnumpy().tolist() == [[expected()] * 2] * 2
    assert cache.kept == 2
    start()
    assert run() == expected()


SPOILT = {
    "nothing": lambda content: b"",
    "noise": lambda content: bytes(range(256)) * 20,
    "the first half": lambda content: content[: len(content) // 2],
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_file_that_mindspore_cannot_read_is_compiled(start, tmp_path, case):
    """Though its checksum is right."""
    start()
    run()
    (path,) = (tmp_path / "kept").iterdir()
    store, source = GraphStore(tmp_path / "kept"), tmp_path / "source"
    source.write_bytes(SPOILT[case](path.read_bytes()[len(MAGIC) + 32 :]))
    store.keep(path.stem, source)
    start()
    assert run() == expected()


@pytest.mark.parametrize("failing", ["next_graph", "write"])
def test_without_room_for_temporary_files_graphs_are_compiled(start, monkeypatch, failing):
    """Nothing is left of the half of a graph that was written."""
    start()
    run()
    cache = start()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    def half(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        full()

    with monkeypatch.context() as patch:
        if failing == "next_graph":
            patch.setattr(executor._PRIVATE, "next_graph", full)
        else:
            patch.setattr(Path, "write_bytes", half)
        assert run() == expected() and cache.taken == 0
    warm = start()
    assert run() == expected() and warm.taken == 1


def test_a_graph_that_another_rank_does_not_have_is_compiled(start):
    """Where ranks exchange something; others are taken without asking."""
    asked = []

    def no(found):
        asked.append(found)
        return False

    start()
    run(times=11)
    from locmoe_ops.collectives.tcp import python_operator as module

    module._made.clear()  # as in a new process
    cache = start(agree=no)
    assert run(times=11) == expected(times=11)
    assert asked == [True] and cache.taken == 0
    run(scale=2.0)
    assert asked == [True]


def test_what_has_no_key_is_compiled_and_told_once(start, capsys, tmp_path):
    class Plain(nn.Cell):
        def __init__(self):
            super().__init__()
            self.run = ops.Custom(lambda x: x + 1, list, lambda dtype: dtype, func_type="pyfunc")

        def construct(self, x):
            return self.run(x)

    start()
    assert float(Plain()(Tensor(ONES)).asnumpy()[0, 0]) == float(Plain()(Tensor(ONES)).asnumpy()[0, 0]) == 2.0
    told = capsys.readouterr().err
    assert told.count("is not kept in runtime.compile_cache") == 1 and "Python function" in told
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_compiler_that_is_not_known_keeps_no_graphs(monkeypatch, caplog):
    """MindSpore 2.7.0's is elsewhere: one line, and everything else goes on."""
    monkeypatch.setattr(executor, "SUPPORTED", False)
    with caplog.at_level("WARNING", logger="pangu_sigma"):
        use_compile_cache(None)
        assert caplog.messages == []
        use_compile_cache(SimpleNamespace())
    assert "no graphs are kept with MindSpore" in caplog.text
    assert executor.cache_in_use() is None
