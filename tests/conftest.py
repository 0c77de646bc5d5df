"""What several kinds of tests share: a small prepared data folder, and the values that fuzzers put in the place of
others.

`pytest --hypothesis-profile fuzz` runs property tests on FUZZ_EXAMPLES inputs each (20,000); see scripts/check_fuzz.py.
"""

import gc
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", 20000)),
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

os.environ.setdefault("GLOG_v", "3")  # MindSpore says errors alone, as in whole commands on CPU
if not os.environ.get("PANGU_SIGMA_COMPILE_CACHE"):
    os.environ["PANGU_SIGMA_COMPILE_CACHE"] = "none"  # commands that tests start leave the user's own graphs alone

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # as shells start what is to run in the background; what tests start must hear it
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Fixtures that build a network, or jobs of several ranks.
_COMPILING = {"networks", "numpy_model", "save_run", "build", "workshop", "run_job"}


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help="only tests that compile no graph: no MindSpore in their file, no network"
    )


# Files of tests/distributed that share a job of ranks, or the addresses of simulated nodes.
_TOGETHER = {
    "test_checkpoints": "layouts",
    "test_parity": "layouts",
    "test_sharding": "layouts",
    "test_traffic": "layouts",
    "test_launchers": "simulated nodes",
    "test_simulated_cluster": "simulated nodes",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Files as with `--dist loadfile`; those of one job go to one process, which makes the job once."""
    from xdist.scheduler.loadfile import LoadFileScheduling

    class JobScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return _TOGETHER.get(Path(file).stem, file) if "distributed" in Path(file).parts else file

    return JobScheduling(config, log)


def pytest_collection_modifyitems(config, items):
    """With `--quick`, leaves out tests of whole commands, of several ranks, and of files that mention MindSpore."""
    if not config.getoption("--quick"):
        return
    unit = Path(__file__).with_name("unit")
    compiles = {
        path: unit not in path.parents or re.search(r"mindspore|pytest.mark.compiles", path.read_text(encoding="utf-8"))
        for path in {item.path for item in items}
    }
    left_out = [item for item in items if compiles[item.path] or _COMPILING & set(item.fixturenames)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(scope="session", autouse=True)
def no_compilation(request):
    """With `--quick`, a test that compiles a graph fails."""
    if request.config.getoption("--quick"):
        try:
            from mindspore.graph import api
        except ModuleNotFoundError:  # MindSpore 2.7
            from mindspore.common import api

        def refuse(*arguments, **options):
            raise AssertionError("--quick: this test compiles a graph; expected pytest.mark.compiles in its file")

        api._CellGraphExecutor.compile = api._JitExecutor.compile = refuse


@pytest.fixture(scope="session", autouse=True)
def named_device():
    """Named before any test runs a graph: after that MindSpore lets nobody name one, as whole commands in this process
    do.
    """
    import mindspore as ms

    ms.set_device("CPU")
    gc.freeze()  # MindSpore collects garbage before each graph: what was imported is none


@pytest.fixture(scope="session", autouse=True)
def kept_graphs(request, named_device):
    """With PANGU_SIGMA_COMPILE_CACHE=FOLDER tests take compiled graphs from there, and add to it: commands and ranks
    that they start by themselves (`start_runtime`), graphs of this process here.
    """
    folder = os.environ["PANGU_SIGMA_COMPILE_CACHE"]
    if folder != "none" and not request.config.getoption("--quick"):
        from pangu_sigma.runtime.compile_cache.executor import CompileCache, use_compile_cache
        from pangu_sigma.runtime.compile_cache.store import GraphStore

        use_compile_cache(CompileCache(GraphStore(Path(folder)), {"job": "tests"}, lambda found: found))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Two domains of made-up words, rows of 32 + 1 ids, prepared with a tokenizer of their own."""
    from pangu_sigma.config.load import config_from_dict
    from pangu_sigma.data.prepare import prepare

    folder = tmp_path_factory.mktemp("tiny")
    generator = np.random.default_rng(0)
    words = np.array(["".join(generator.choice(list("abcdefghij"), 4)) for _ in range(120)])
    sources = {}
    for domain in ("one", "two"):
        source = folder / domain
        source.mkdir()
        for number in range(12):
            (source / f"{number}.txt").write_text(" ".join(generator.choice(words, 400)))
        sources[domain] = str(source)
    prepare(
        config_from_dict(
            {
                "model": {"sequence_length": 32},
                "data": {
                    "path": str(folder / "data"),
                    "prepare": {"sources": sources, "vocab_size": 320, "validation_fraction": 0.1},
                },
            }
        )
    )
    return folder / "data"


@pytest.fixture(scope="session")
def save_run(tiny_data, tmp_path_factory):
    """`save_run(moe, **sections)`: a run directory with `config.yaml` and one checkpoint, of a small model with random
    weights, as training writes them.
    """
    from locmoe_ops.collectives.create import create_collectives
    from locmoe_ops.topology import Topology
    from pangu_sigma.checkpoint.header import training_header
    from pangu_sigma.checkpoint.state import RankLocation, local_tensors
    from pangu_sigma.checkpoint.writer import CheckpointWriter, Retention, WritingJob
    from pangu_sigma.config.load import config_from_dict, save_config
    from pangu_sigma.data.dataset import PreparedData
    from pangu_sigma.data.vocabulary import vocabulary
    from pangu_sigma.model.capacity_rules import resolve_layout
    from pangu_sigma.runtime.runtime import Runtime
    from pangu_sigma.train.engine import TrainEngine

    data, alone = PreparedData.open(str(tiny_data)), Topology(1, 1)

    def save(moe, **sections):
        folder = tmp_path_factory.mktemp("run")
        config = config_from_dict(
            {
                "model": {
                    "hidden_size": 16,
                    "num_heads": 2,
                    "dense_layers": 0,
                    "sparse_layers": 1,
                    "sequence_length": 32,
                    "init_std": 0.4,
                },
                "moe": {"num_experts": 4, "num_groups": 2, **moe},
                "data": {"path": str(tiny_data), **sections.pop("data", {})},
                "optimizer": {"warmup_steps": 1},
                "train": {"steps": 2, "global_batch_size": 2, "output_dir": str(folder)},
                **sections,
            }
        )
        parts = TrainEngine(config, Runtime(create_collectives("local", alone, 0)), vocabulary(config, data))
        header = training_header(config, resolve_layout(config, alone), data, data.vocab_size, 2, parts.state())
        place = RankLocation(alone, 0, parts.context.slot_rules.placement.local_experts(0))
        with CheckpointWriter(folder / "checkpoints", WritingJob(0, (0,), 5.0, lambda: None), Retention()) as writer:
            writer.save(header, local_tensors(parts.state(), place))
        save_config(config, folder / "config.yaml")
        return folder

    return save


def _nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.fixture(scope="session")
def spoil():
    """`spoil(data, content)` puts JSON values, often extreme ones, in the place of some in a structure, or removes or
    adds some.
    """
    extreme = st.sampled_from(
        [
            -1,
            2**63,
            10**400,
            0.5,
            1e308,
            "",
            "..",
            "../x",
            "a\0b",
            "\ud800",
            "x\ny",
            "x" * 300,
            "1" * 30,
            [],
            {},
            "@",
            "a@b",
            _nested(400),
            _nested(900),
        ]
    )
    scalar = (
        extreme
        | st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=8)
    )
    values = st.recursive(
        scalar,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )

    def run(data, content):
        for _ in range(data.draw(st.integers(1, 3))):
            place, parent, key = content, None, None
            while isinstance(place, (dict, list)) and place and (parent is None or data.draw(st.booleans())):
                parent = place
                key = data.draw(
                    st.sampled_from(sorted(place, key=str) if isinstance(place, dict) else range(len(place)))
                )
                place = parent[key]
            if parent is None:
                return
            kind = data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
            if kind == "remove":
                del parent[key]
            elif kind == "add" and isinstance(parent, dict):
                parent[data.draw(st.text(max_size=8) | st.just("a@b"))] = data.draw(values)
            else:
                parent[key] = data.draw(values)

    return run
