"""`pangu-sigma audit` on compiled graphs: shipped forms of the step pass, and a rank that compiles another step is
caught.
"""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from mindspore import Tensor

from helpers.exported import both_like_the_first, without_peers
from helpers.processes import command_lines_with
from helpers.traffic import MODEL
from locmoe_ops.collectives.hccl import HcclCollectives
from locmoe_ops.topology import Topology
from pangu_sigma.audit.audit import audited_job, read_ranks
from pangu_sigma.audit.checks import check
from pangu_sigma.audit.graph import read_rank
from pangu_sigma.audit.wires import WireTypes, queued_behind_gradients, wide_wires
from pangu_sigma.audit.worker import export_rank
from pangu_sigma.cli.main import main
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.inference.cells import Decode, Prefill, empty_caches
from pangu_sigma.inference.load import inference_config, network_context
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.planner.exchanges import step_exchanges
from pangu_sigma.planner.predict import recomputed_flops
from pangu_sigma.planner.traffic import by_cause
from pangu_sigma.runtime.mindir import export_graph

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operators.md"
LIMIT = 600  # seconds for the compilations of a job on two slow cores


def model_of(folder):
    """The one graph of rank 0's step."""
    from mindspore.train import mind_ir_pb2

    model = mind_ir_pb2.ModelProto()
    (path,) = folder.glob("*_0.mindir")
    model.ParseFromString(path.read_bytes())
    return model


def configuration(moe, **sections):
    given = {
        "optimizer": {"warmup_steps": 1},
        "train": {"steps": 2, "global_batch_size": 8},
        "model": MODEL,
        **sections,
    }
    return {**given, "moe": {"num_experts": 8, "num_groups": 2, **moe}}


GROUP_WISE = configuration(
    {
        "shared_experts": 2,
        "router": {"type": "locmoe"},
        "dispatch": {"type": "hierarchical", "group_wise": True, "chunks": 2},
    },
    parallel={"expert": 2, "tensor": 2, "ranks_per_node": 2, "reduce_precision": "bf16"},
    runtime={"precision": "bf16"},
    train={"steps": 2, "global_batch_size": 8, "recompute": "all"},
    optimizer={"warmup_steps": 1, "zero": "data_parallel"},
)
SWITCH = configuration({"router": {"type": "switch"}}, parallel={"expert": 2})
SATURATING = {**SWITCH, "runtime": {"device": "ascend", "precision": "fp16", "chip": "910a"}}
RAGGED = configuration(
    {
        "num_groups": 1,
        "shared_experts": 1,
        "router": {"type": "switch", "top_k": 8},
        "dispatch": {"type": "ragged", "ragged_limit": 1.5},
    },
    parallel={"expert": 2},
    runtime={"device": "ascend", "precision": "bf16", "chip": "910b", "fused": {"experts": True}},
)
ALIKE = {"saturating": SATURATING, "ragged": RAGGED}
WRONG = {
    "skips": configuration({"router": {"type": "hash"}}, parallel={"expert": 2}),
    "other_order": configuration({"router": {"type": "switch"}}, parallel={"expert": 2, "overlap_gradients": False}),
    "other_capacity": configuration(
        {"router": {"type": "switch"}, "capacity": {"factor": 2.0}}, parallel={"expert": 2}
    ),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder for each case with the graphs that are looked at: of `SWITCH` on the first of two ranks and of `WRONG`
    on the second, of ALIKE on the first, of generation on both. Compiled in this process, one by one.
    """
    folder = tmp_path_factory.mktemp("audit")
    cases = {"switch": (0, SWITCH), **{name: (1, config) for name, config in WRONG.items()}}
    cases.update({name: (0, config) for name, config in ALIKE.items()})
    for name, (rank, config) in cases.items():
        (folder / name).mkdir()
        with without_peers(rank, 2):
            export_rank(config_from_dict(config), rank, 2, 50, 2, folder / name, "job")
    (folder / "generation").mkdir()
    for rank in (0, 1):
        with without_peers(rank, 2):
            export_generation(config_from_dict(SWITCH), rank, folder / "generation")
    return folder


def export_generation(config, rank, folder):
    """As `export_rank` does it for training: both graphs, for two rows of eight tokens, and what they are."""
    collectives = HcclCollectives(rank, Topology(2, 2, 2))
    context = network_context(inference_config(config, 2), 50, 2, collectives)
    network = PanGuSigma(context)
    row, column, whole = (Tensor(np.zeros(shape, np.int32)) for shape in ((2,), (2, 1), (2, 8)))
    inputs = {
        "prefill": (whole, whole, row, row, row),
        "decode": (column, column, column, row, row, *empty_caches(network, 2, 8)),
    }
    for name, kind in (("prefill", Prefill), ("decode", Decode)):
        export_graph(kind(network, context, 2, 8), inputs[name], folder / f"{name}_{rank}")
    note = {"graphs": [[name, 1] for name in inputs], "groups": collectives.groups}
    (folder / f"rank_{rank}.json").write_text(json.dumps(note))


@pytest.mark.parametrize(
    "name, fragments",
    [
        ("skips", ["rank 0 runs all_reduce 'layer 0/statistics'", "where rank 1 runs all_to_all"]),
        ("other_order", ["rank 0 runs all_reduce 'gradient/", "where rank 1 runs"]),
        ("other_capacity", ["rank 0 runs all_to_all 'all_to_all/layer 0/dispatch'", "where rank 1 runs all_to_all"]),
    ],
)
def test_a_rank_with_another_step_is_caught(compiled, name, fragments):
    job = audited_job(config_from_dict(SWITCH), 1, 2)
    ranks = [read_rank(compiled / "switch", 0, False), read_rank(compiled / name, 1, False)]
    problems = check(ranks, step_exchanges(job), job.topology)
    assert any(all(fragment in line for fragment in fragments) for line in problems), problems


def test_a_device_that_saturates_is_asked_for_overflows(compiled):
    """One clear before all products and one read after them, and the sum of what all ranks read; not elsewhere."""
    job = audited_job(config_from_dict(SATURATING), 1, 2)
    ranks = both_like_the_first(job, compiled / "saturating")
    assert job.reads_status and check(ranks, step_exchanges(job), job.topology) == []
    assert [found.tag for found in ranks[0].graphs[0].collectives].count("gradient/overflow") == 1
    faults = ["0 NPUClearFloatStatusV2, expected 1", "0 NPUGetFloatStatusV2, expected 1"]
    assert list(read_rank(compiled / "switch", 0, False, status=True).graphs[0].faults) == faults


def test_counts_of_ragged_dispatch_are_what_leaves_the_device(compiled):
    """There and back and the same for gradients, a layer; counts once, gathered. Experts on the rows that arrived: no
    product of a region's size is left, but those of attention, scores and mixing.
    """
    job = audited_job(config_from_dict(RAGGED), 1, 2)
    ranks = both_like_the_first(job, compiled / "ragged")
    assert check(ranks, step_exchanges(job), job.topology) == []
    (graph,) = ranks[0].graphs
    kinds = Counter(found.operation for found in graph.collectives if found.cause == "all_to_all")
    assert kinds == {"all_to_all_v": 4 * job.sparse_layers, "all_gather": job.sparse_layers}
    assert graph.host_waits == 4 * job.sparse_layers
    operations = Counter(
        node.op_type.removeprefix("REF::").partition(":")[0] for node in model_of(compiled / "ragged").graph.node
    )
    assert operations["AlltoAllVC"] == 4 * job.sparse_layers and operations["AlltoAllV"] == 0
    assert operations["GroupedMatmulV4"] == 6 * job.sparse_layers
    assert operations["BatchMatMul"] == 6 * (job.sparse_layers + 1)


def test_operators_of_steps_are_those_of_the_page(compiled):
    """docs/operators.md, which `python scripts/make_operator_table.py` makes, has whatever is compiled here."""
    listed = set(re.findall(r"^\| `(\w+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    graphs = read_rank(compiled / "saturating", 0, False).graphs  # the others are made of a CPU's forms of operations
    found = {one.name for graph in graphs for one in graph.operators}
    assert len(found) > 40 and found <= listed, sorted(found - listed)


def test_generation_sums_over_ranks_on_the_device(compiled):
    """Its graphs compile with hccl's primitives: a sum for each sparse layer, the first rank's logits at the end, and
    nothing else between ranks, none of it through the host.
    """
    ranks = [read_rank(compiled / "generation", rank, False) for rank in (0, 1)]
    for rank in ranks:
        for graph, tokens in zip(rank.graphs, (16, 2)):
            found = [(collective.operation, collective.shape) for collective in graph.collectives]
            assert found == [("all_reduce", (1, tokens, MODEL["hidden_size"])), ("broadcast", (2, 50))], graph.name
            assert graph.faults == ()


def test_a_step_of_four_ranks_passes(tmp_path, capsys):
    """Group-wise and hierarchical, in chunks, with gradients that set out early, in half precision, and optimizer state
    shared out. Layers are recomputed, which repeats products and no exchange. Several micro-batches:
    test_combinations.py.
    """
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(GROUP_WISE))
    status = main(
        ["audit", str(tmp_path / "config.yaml"), "--json", "--keep", str(tmp_path / "graphs"), "--timeout", str(LIMIT)]
    )
    found = json.loads(capsys.readouterr().out)
    assert status == 0 and found["passed"] and found["problems"] == []
    job = audited_job(config_from_dict(GROUP_WISE), None, None)
    planned = by_cause(step_exchanges(job), job.topology)
    assert found["bytes"] == {cause: sent._asdict() for cause, sent in planned.items()}
    assert [graph["name"] for graph in found["ranks"][3]["graphs"]] == ["step"]
    ranks = read_ranks(job, tmp_path / "graphs")
    assert sum(graph.times * graph.again for graph in ranks[0].graphs) == pytest.approx(recomputed_flops(job)) != 0
    with_nothing = config_from_dict({**GROUP_WISE, "train": {**GROUP_WISE["train"], "recompute": "none"}})
    assert step_exchanges(job) == step_exchanges(audited_job(with_nothing, None, None))
    kinds = {exchange["operation"] for graph in found["ranks"][0]["graphs"] for exchange in graph["collectives"]}
    assert kinds == {"all_to_all", "all_gather", "reduce_scatter", "all_reduce"}
    assert (tmp_path / "graphs" / "step_3.mindir").is_file()
    check_wires(read_ranks(job, tmp_path / "graphs"))


def check_wires(ranks):
    """Of so small a step: all that is above 256 bytes is of two bytes a number, gradients too, statistics and updated
    weights apart. Held against fp32's width or another's, all of it, or none, would be too wide. Gradients are summed
    on communicators of their own, though the same ranks exchange tokens.
    """
    assert wide_wires(ranks, WireTypes(2, 2), limit=256) == []
    assert len(wide_wires(ranks, WireTypes(1, 1), limit=256)) > 20
    (step,) = ranks[0].graphs
    tokens, gradients = (
        {(one.group, one.members) for one in step.collectives if one.tag.startswith(begin)}
        for begin in ("all_to_all/", "gradient/overlap ")
    )
    assert {members for _, members in gradients} <= {members for _, members in tokens}
    assert not {group for group, _ in gradients} & {group for group, _ in tokens}
    assert queued_behind_gradients(ranks) == []
    shared = [
        replace(
            own,
            graphs=tuple(
                replace(g, collectives=tuple(replace(one, group=str(one.members)) for one in g.collectives))
                for g in own.graphs
            ),
        )
        for own in ranks
    ]
    assert queued_behind_gradients(shared) != []


@pytest.mark.parametrize(
    "arguments, fragment",
    [
        (["--nodes", "40", "--ranks-per-node", "2"], "80 processes on this machine, expected at most 64"),
        (["--set", "parallel={expert: 1}"], "one rank exchanges nothing"),
        (["--devices-per-node", "2"], "--devices-per-node is called --ranks-per-node now"),
        (["--keep", "."], "--keep: cannot make ."),
        (["--nodes", "3", "--ranks-per-node", "1"], "parallel.expert"),
    ],
)
def test_bad_input(tmp_path, capsys, arguments, fragment):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SWITCH))
    assert main(["audit", str(tmp_path / "config.yaml"), *arguments]) == 2
    error = capsys.readouterr().err
    assert fragment in error and error.count("\n") == 1


def test_nothing_is_left_of_an_audit_that_is_killed(tmp_path):
    """msrun is told that the audit is gone, and the ranks that msrun is."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SWITCH))
    folder = str(tmp_path / "graphs")
    command = [sys.executable, "-m", "pangu_sigma", "audit", str(tmp_path / "config.yaml")]
    audit = subprocess.Popen(
        [*command, "--keep", folder], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + LIMIT
        while sum("worker.py" in line and "msrun" not in line for line in command_lines_with(folder)) < 3:
            assert audit.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        audit.kill()
        audit.wait()
    deadline = time.monotonic() + 60
    while command_lines_with(folder):
        assert time.monotonic() < deadline, command_lines_with(folder)
        time.sleep(0.2)
