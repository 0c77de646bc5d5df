"""The dispatcher of docs/dispatchers.md, as it stands there: its file is written out, named on the command line, and
works in every command.
"""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

import mindspore as ms
from mindspore import Tensor, nn

from helpers.pages import OWN, write_own
from locmoe_ops import dispatch
from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.collectives.hccl import HcclCollectives
from locmoe_ops.dispatch import registry, specs
from locmoe_ops.dispatch.geometry import DispatchSetup, FixedCapacities
from locmoe_ops.dispatch.registry import add_dispatcher_file, dispatchers, load_dispatcher, remove_dispatcher
from locmoe_ops.errors import InputError
from locmoe_ops.topology import ExpertPlacement, Topology
from pangu_sigma.bench.all_to_all import variants
from pangu_sigma.cli.main import main
from pangu_sigma.compare.comparison import load_plan
from pangu_sigma.config.load import load_config
from pangu_sigma.planner.exchanges import step_exchanges
from pangu_sigma.planner.job import plan_job
from pangu_sigma.runtime.router_files import VARIABLE

NAME, MOST_LINES = OWN["dispatchers.md"], 60
TYPE = f"moe.dispatch.type={NAME}"
ITEMS = {"Float16": 2, "Float32": 4}


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The page's file in a folder of its own; the dispatcher is forgotten afterwards."""
    path = write_own("dispatchers.md", tmp_path)
    assert len([line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]) < MOST_LINES
    monkeypatch.setenv(VARIABLE, "")
    yield path
    remove_dispatcher(NAME)


@pytest.fixture
def config(tmp_path, tiny_data):
    """A small configuration's file."""
    settings = {
        "model": {"hidden_size": 16, "num_heads": 2, "dense_layers": 0, "sparse_layers": 1, "sequence_length": 32},
        "moe": {"num_experts": 4, "num_groups": 2, "router": {"type": "switch"}},
        "data": {"path": str(tiny_data)},
        "runtime": {"device": "cpu"},
        "optimizer": {"warmup_steps": 1},
        "train": {"steps": 2, "global_batch_size": 4, "eval_rows": 4},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


def use(file):
    return ["--router-file", str(file)]


def test_forward_equals_a_loop(file):
    """Experts double and shift what they get; each number is rounded on its way there and on its way back."""
    tokens, width, experts, capacity = 17, 5, 6, 3
    add_dispatcher_file(str(file))
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    topology, placement = Topology(1, 1), ExpertPlacement(experts, 3, 1)
    setup = DispatchSetup(topology, placement, tokens, 1, FixedCapacities(capacity))
    dispatcher = load_dispatcher(NAME).build(create_collectives("local", topology, 0), setup, "t")

    class There(nn.Cell):
        def __init__(self):
            super().__init__()
            self.dispatcher = dispatcher

        def construct(self, x, expert, weight):
            return self.dispatcher.forward(x, expert, weight, weight, self.experts)[0]

        def experts(self, rows):
            return rows * 2.0 + 1.0 / 3.0

    rng = np.random.default_rng(0)
    x = rng.standard_normal((tokens, width)).astype(np.float32)
    expert = rng.integers(0, experts, (tokens, 1)).astype(np.int32)
    weight = rng.uniform(size=(tokens, 1)).astype(np.float32)
    expected, taken = np.zeros_like(x), [0] * experts
    for token in range(tokens):
        taken[expert[token, 0]] += 1
        if taken[expert[token, 0]] <= capacity:
            result = x[token].astype(np.float16).astype(np.float32) * np.float32(2.0) + np.float32(1.0 / 3.0)
            expected[token] = result.astype(np.float16).astype(np.float32) * weight[token]
    assert max(taken) > capacity
    found = There()(Tensor(x), Tensor(expert), Tensor(weight)).asnumpy()
    np.testing.assert_array_equal(found, expected)


class Recorder(nn.Cell):
    """An exchange that sends nothing: notes its operation, its group, and the numbers and bytes that it is given."""

    def __init__(self, calls, operation, group):
        super().__init__()
        self.calls, self.name = calls, (operation, group)

    def construct(self, x):
        self.calls.append((*self.name, x.size, ITEMS[str(x.dtype)]))
        return x


class Recorded(HcclCollectives):
    """One of several ranks, whose exchanges are noted in `calls`."""

    calls: list

    def _cell(self, operation, group, *_):
        return Recorder(self.calls, operation, group.kind)


def test_the_plan_lists_what_its_cells_call(file, config):
    add_dispatcher_file(str(file))
    given = load_config(config, [TYPE, "parallel.expert=4"])
    job = plan_job(given, 2, 2)
    planned = [e for e in step_exchanges(job) if e.cause == "all_to_all"]
    assert [e.phase for e in planned] == ["forward", "backward"] * 2
    collectives = Recorded(0, job.topology)
    collectives.calls = calls = []
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        setup = job.slot_rules.dispatch_setup(job.exchange, given.moe.capacity.factor)
        dispatcher = load_dispatcher(NAME).build(collectives, setup, "t")
        x, weight = np.zeros((job.tokens, 16), np.float32), Tensor(np.ones((job.tokens, 1), np.float32))
        expert = Tensor(np.zeros((job.tokens, 1), np.int32))
        dispatcher.forward(Tensor(x), expert, weight, weight, lambda rows: rows)
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
    listed = [(e.operation, e.group, e.elements, e.item) for e in planned]
    assert listed[::2] == calls and listed[1::2] == calls  # each is its own adjoint
    flat = [e for e in step_exchanges(plan_job(load_config(config, ["parallel.expert=4"]), 2, 2)) if e in planned]
    assert flat == [] and {e.item for e in planned} == {2}


def test_plan_shows_half_the_bytes(file, config, capsys):
    found = []
    for words in ([], ["--set", TYPE]):
        cluster = [
            "--nodes",
            "2",
            "--ranks-per-node",
            "2",
            "--set",
            "parallel.expert=4",
            "--hardware",
            "cpu",
            "--json",
        ]
        assert main(["plan", config, *use(file), *cluster, *words]) == 0
        found.append(json.loads(capsys.readouterr().out)["bytes"]["all_to_all"]["inter_node"])
    assert found[0] == 2 * found[1] > 0


def test_compare_lists_its_runs_and_minds_its_file(file, config, tmp_path, capsys):
    plan = tmp_path / "variants.yaml"
    plan.write_text(yaml.safe_dump({"base": config, "variants": {"flat": {}, NAME: {"moe.dispatch.type": NAME}}}))
    assert main(["compare", str(plan), "--dry-run", "--output", str(tmp_path / "out"), *use(file)]) == 0
    assert f"all/{NAME}/seed_1 (to do)" in capsys.readouterr().out
    before = [run.settings for run in load_plan(str(plan)).runs]
    file.write_text(file.read_text() + "# changed\n")
    after = [run.settings for run in load_plan(str(plan)).runs]
    assert [one == other for one, other in zip(before, after)] == [True, False]


def test_bench_has_a_row_for_it(file):
    add_dispatcher_file(str(file))
    rows = [(label, dispatch.type, dispatch.chunks) for label, dispatch in variants()]
    assert rows[-1] == (NAME, NAME, 1) and len(rows) == 9


def test_trains_and_is_named_in_the_run(file, config, tmp_path):
    run = tmp_path / "run"
    assert main(["train", config, *use(file), "--set", TYPE, "--set", f"train.output_dir={run}"]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["moe"]["dispatch"]["type"] == NAME
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ([f"{TYPE}s"], "did you mean half?"),
        (
            [TYPE, "moe.dispatch.chunks=2"],
            "chunks is 2 with moe.dispatch.type half, which sends all at once; expected 1",
        ),
        (
            [TYPE, "moe.dispatch.group_wise=true"],
            "group_wise is true with moe.dispatch.type half, which does not use it",
        ),
        ([TYPE, "moe.capacity.local_share=0.5"], "local_share is 0.5 with moe.dispatch.type half"),
    ],
)
def test_keys_that_it_does_not_use_are_refused(file, config, capsys, words, fragment):
    settings = [word for one in words for word in ("--set", one)]
    assert main(["config", config, *use(file), *settings]) == 2
    assert fragment in capsys.readouterr().err


def test_without_the_file_its_name_is_refused(config, capsys):
    assert main(["config", config, "--set", TYPE]) == 2
    assert "expected one of flat, hierarchical, node_dedup, ragged" in capsys.readouterr().err


@pytest.mark.parametrize("files", [1, 2])
def test_in_the_package_no_other_file_changes(file, config, tmp_path, monkeypatch, files):
    """As one file in `specs`, or the declaration there, Cells and `build` in `dispatch`."""
    code, folder = file.read_text(encoding="utf-8"), tmp_path / "package"
    (folder / "specs").mkdir(parents=True)
    if files == 1:
        (folder / "specs" / file.name).write_text(code, encoding="utf-8")
    else:
        head, declaration, cells = re.split(r"(?=^def slots|^class HalfDispatcher)", code, flags=re.MULTILINE)
        heavy = ("mindspore", "dispatch.base", "dispatch.repick")
        light = [line for line in head.splitlines() if not any(word in line for word in heavy)]
        (folder / "specs" / file.name).write_text("\n".join([*light, declaration]), encoding="utf-8")
        own = f"from locmoe_ops.dispatch.specs.{NAME} import slots\n\n\n"
        (folder / file.name).write_text(head + own + cells, encoding="utf-8")
    monkeypatch.setattr(specs, "__path__", [*specs.__path__, str(folder / "specs")])
    monkeypatch.setattr(dispatch, "__path__", [*dispatch.__path__, str(folder)])
    registry._REGISTRY.__dict__.pop("shipped", None)
    try:
        assert set(dispatchers()) == {"flat", NAME, "hierarchical", "node_dedup", "ragged"}
        assert load_config(config, [TYPE]).moe.dispatch.type == NAME
        assert load_dispatcher(NAME).__name__ == f"locmoe_ops.dispatch.{'specs.' * (files == 1)}{NAME}"
    finally:
        registry._REGISTRY.__dict__.pop("shipped", None)
        for name in (f"locmoe_ops.dispatch.{NAME}", f"locmoe_ops.dispatch.specs.{NAME}"):
            sys.modules.pop(name, None)


def test_keys_of_the_packages_dispatchers_need_no_mindspore(config):
    code = (
        "import sys; from pangu_sigma.cli.main import main; "
        f"assert main(['config', {config!r}, '--set', 'moe.dispatch.type=ragged', '--key', 'moe.dispatch.type']) == 0; "
        "assert 'mindspore' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "ragged\n"), done.stderr


def test_a_name_is_taken_once(file, tmp_path):
    assert add_dispatcher_file(str(file)) == add_dispatcher_file(str(file)) == NAME
    for name, fragment in (
        (f"other/{NAME}", "there is a dispatcher half already"),
        ("flat", "dispatcher flat already"),
    ):
        other = tmp_path / f"{name}.py"
        other.parent.mkdir(exist_ok=True)
        other.write_text(file.read_text())
        with pytest.raises(InputError, match=fragment):
            add_dispatcher_file(str(other))


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("DISPATCHER = 3\n", "found int for DISPATCHER"),
        ("OTHER = 3\n", "found NoneType for DISPATCHER, expected DISPATCHER = DispatcherSpec(...)"),
        ("DISPATCHER = 1 / 0\n", "it cannot be imported (ZeroDivisionError: division by zero)"),
        (
            "from locmoe_ops.dispatch.registry import DispatcherSpec\n"
            "DISPATCHER = DispatcherSpec(None, None, ('a.b',))\n",
            "DISPATCHER names the key a.b, expected some of dispatch.ragged_limit,",
        ),
    ],
)
def test_a_wrong_declaration_is_named(tmp_path, text, fragment):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(fragment)):
        add_dispatcher_file(str(path))
