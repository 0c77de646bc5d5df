"""Kernels that a layer costs in an exported micro-batch, forward and backward: what one layer more adds to the graph,
conversions of parameters and accumulation of gradients apart.

The shape is that of configs/ascend/pangu_sigma_38b_128.yaml on four ranks: tensor parallel 2, expert parallel 2, one
expert a rank, group-wise exchange in two chunks, fused kernels, gradients accumulated.
"""

from pathlib import Path

import pytest

from helpers.exported import export_first, first_rank
from pangu_sigma.audit.audit import audited_job
from pangu_sigma.audit.kernels import by_operator, launches, pass_launches
from pangu_sigma.config.load import load_config
from pangu_sigma.model.parameter_groups import reads_copy
from pangu_sigma.planner.launches import COPY, micro_batch_launches, update_launches
from pangu_sigma.planner.parameters import parameters
from pangu_sigma.planner.predict import recomputed_flops

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "ascend" / "pangu_sigma_38b_128.yaml"
SMALL = (
    "model.hidden_size=64",  # heads of 16 features, as the kernel wants them
    "model.num_heads=4",
    "model.ffn_hidden_size=32",
    "model.sequence_length=16",
    "model.vocab_size=64",
    "moe.num_experts=2",
    "data.path=none",
    "parallel.expert=2",
    "parallel.tensor=2",
    "parallel.ranks_per_node=2",
    "train.global_batch_size=4",
    "train.micro_batch_size=1",
)
LAYERS = {"base": (1, 1), "dense": (2, 1), "sparse": (1, 2)}  # dense and sparse blocks, below a sparse query layer
RECOMPUTED, EACH = "base, recomputed", "base, each"  # with biases and norms updated one by one
# Two ranks, each with eight experts; one choice of a token, and several.
CHOICES = (
    "moe.num_experts=16",
    "moe.dispatch={type: flat}",
    "moe.router.type=topk",
    "parallel.tensor=1",
    "parallel.ranks_per_node=1",
)
BUDGETS = {"dense": 90, "sparse": 200}
VECTORS = 4  # of biases and norms: dense ones and experts', held whole and split


def job(name):
    base, _, form = name.partition(", ")
    dense, sparse = LAYERS[base]
    layers = (f"model.dense_layers={dense}", f"model.sparse_layers={sparse}")
    forms = {"recomputed": ["train.recompute=all"], "each": ["optimizer.flat=false"]}
    return audited_job(load_config(str(SHIPPED), [*SMALL, *layers, *forms.get(form, [])]), 2, 2)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The graphs of a step by name, those of each case that are looked at."""
    micro_batch = {name: ["copies", "micro_batch"] for name in LAYERS}
    wanted = {**micro_batch, "base": None, RECOMPUTED: ["micro_batch"], EACH: ["last_micro_batch"]}
    found = {}
    for name, graphs in wanted.items():
        folder = tmp_path_factory.mktemp("kernels")
        export_first(job(name), folder, graphs)
        found[name] = {graph.name: graph for graph in first_rank(job(name), folder).graphs}
    return found


@pytest.fixture(scope="module")
def operators(steps):
    """Operators of a micro-batch's graph, by case."""
    return {name: graphs["micro_batch"].operators for name, graphs in steps.items() if name != EACH}


@pytest.mark.parametrize("kind", BUDGETS)
def test_a_layer_keeps_its_budget(operators, kind):
    more, base = by_operator(operators[kind]), by_operator(operators["base"])
    added = {name: count - base.get(name, 0) for name, count in more.items() if count != base.get(name, 0)}
    assert 0 < pass_launches(operators[kind]) - pass_launches(operators["base"]) <= BUDGETS[kind], added


@pytest.mark.parametrize("name", [*LAYERS, RECOMPUTED])
def test_the_plan_counts_the_graphs_kernels(operators, name):
    """Within a tenth: equal operators of two layers are one, which the plan does not know of."""
    assert micro_batch_launches(job(name)) == pytest.approx(launches(operators[name]), rel=0.1)


def test_the_plan_counts_what_further_choices_add(tmp_path):
    """Within a tenth, in two sparse layers: the query layer is one."""
    found, planned = {}, {}
    for top_k in (1, 2, 8):
        keys = [*SMALL, *CHOICES, "model.dense_layers=1", "model.sparse_layers=1", f"moe.router.top_k={top_k}"]
        of_choices, folder = audited_job(load_config(str(SHIPPED), keys), 2, 1), tmp_path / str(top_k)
        folder.mkdir()
        export_first(of_choices, folder, ["micro_batch"])
        found[top_k] = launches(first_rank(of_choices, folder).graphs[0].operators)
        planned[top_k] = micro_batch_launches(of_choices)
    for top_k in (2, 8):
        assert planned[top_k] - planned[1] == pytest.approx(found[top_k] - found[1], rel=0.1)


def test_vectors_save_the_update_what_is_planned(steps):
    """The last micro-batch's graph holds the update. Two kernels more or less a vector: what its length leaves over."""
    found = {name: launches(steps[name]["last_micro_batch"].operators) for name in ("base", EACH)}
    planned = {name: update_launches(job(name)) for name in found}
    assert found["base"] < found[EACH]
    assert found[EACH] - found["base"] == pytest.approx(planned[EACH] - planned["base"], abs=2 * VECTORS)


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_are_converted_once_a_step(steps, operators, name):
    assert not [one for one in operators[name] if one.upkeep and one.name == "Cast"]
    copied = sum(reads_copy(one.name) for one in parameters(job(name)))
    assert launches(steps[name]["copies"].operators) == COPY * copied


def test_forms_for_ascend_are_recomputed(steps):
    """Norms, products with a bias, attention by rows and fused experts: as many FLOPs again as planned."""
    again = 2 * steps[RECOMPUTED]["micro_batch"].again  # the last of the two micro-batches is the same, and updates
    assert again == pytest.approx(recomputed_flops(job(RECOMPUTED)), rel=1e-6)  # sums of floats
