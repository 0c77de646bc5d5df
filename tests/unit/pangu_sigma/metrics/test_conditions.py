"""Which metrics a run can have, by its configuration and ranks: the expectation is written out by hand for each job."""

import pytest

from locmoe_ops.dispatch.registry import add_dispatcher_file, remove_dispatcher
from locmoe_ops.router_registry import add_router_file, remove_router
from locmoe_ops.topology import Topology
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.metrics.conditions import RunFacts
from pangu_sigma.metrics.definitions import DEFINITIONS, left_out

SPLIT = {f"time/{name}(s)" for name in ("compute", "communication", "idle", "overlapped")}
SLOWEST = {"time/slowest_rank", "time/slowest_rank/compute(s)", "time/median_rank/compute(s)"}
NODES = {"moe/tokens_by_nodes", "moe/nodes_per_token"}
HOME = {"moe/local_fraction", "moe/local_fraction_by_layer"}
TRAFFIC = {name for name in DEFINITIONS if name.startswith("comm/") or name.count("/") == 2 and name[:5] == "time/"}
TRAFFIC = (TRAFFIC | {f"time/{cause}(s)" for cause in ("all_to_all", "gradient", "tensor")}) - SLOWEST


def job(ranks=1, a_node=None, layout=None, device=False, counted=True, **sections):
    """What such a run leaves out."""
    config = config_from_dict(sections)
    degrees = config.parallel
    topology = Topology(ranks, a_node or ranks, degrees.expert, degrees.tensor)
    return left_out(RunFacts(config, topology, layout or topology, device, counted))


def parts(cause, *links, overlapped=False):
    names = {f"time/{cause}(s)", f"time/{cause}/idle(s)", *(f"comm/{cause}/{link}_node(B)" for link in links)}
    return names | {f"time/{cause}/overlapped(s)"} if overlapped else names


def test_one_process_has_no_traffic_and_one_node():
    absent = job()
    assert absent >= SPLIT | SLOWEST | HOME | TRAFFIC | {"optim/loss_scale", "throughput/mfu"}
    assert not absent & {"loss/total", "loss/task", "loss/aux", "moe/drop_fraction", "time/step(s)", "memory/peak(B)"}
    assert not absent & {"progress/tokens", "time/unix", "optim/skipped_steps", "moe/load_max_over_mean"}


@pytest.mark.parametrize(
    ("ranks", "a_node", "sections", "travels"),
    [
        # data parallel alone, on one node
        (2, 2, {}, {"comm/intra_node(B)"} | parts("gradient", "intra", overlapped=True)),
        # one rank a node: nothing inside
        (2, 1, {}, {"comm/inter_node(B)"} | parts("gradient", "inter", overlapped=True)),
        # experts over two nodes of two ranks
        (
            4,
            2,
            {"parallel": {"expert": 4}},
            {"comm/intra_node(B)", "comm/inter_node(B)"}
            | parts("gradient", "intra", "inter", overlapped=True)
            | parts("all_to_all", "intra", "inter"),
        ),
        # experts over the ranks of a node, replicas on the other: tokens stay inside
        (
            4,
            2,
            {"parallel": {"expert": 2, "overlap_gradients": False}},
            {"comm/intra_node(B)", "comm/inter_node(B)"}
            | parts("gradient", "intra", "inter")
            | parts("all_to_all", "intra"),
        ),
        # tensor parallel inside each node, experts across: tokens inside nodes only where ranks share them out
        (
            4,
            2,
            {"parallel": {"expert": 2, "tensor": 2}, "moe": {"dispatch": {"chunks": 2}}},
            {"comm/intra_node(B)", "comm/inter_node(B)"}
            | parts("gradient", "intra", "inter", overlapped=True)
            | parts("all_to_all", "inter", overlapped=True)
            | parts("tensor", "intra"),
        ),
        (
            4,
            2,
            {"parallel": {"expert": 2, "tensor": 2}, "moe": {"dispatch": {"group_wise": True}}},
            {"comm/intra_node(B)", "comm/inter_node(B)"}
            | parts("gradient", "intra", "inter", overlapped=True)
            | parts("all_to_all", "intra", "inter")
            | parts("tensor", "intra"),
        ),
        # a dense network sends no tokens
        (
            2,
            2,
            {"model": {"sparse_layers": 0}, "parallel": {"expert": 2}},
            {"comm/intra_node(B)"} | parts("gradient", "intra", overlapped=True),
        ),
    ],
)
def test_what_travels(ranks, a_node, sections, travels):
    absent = job(ranks, a_node, **sections)
    assert TRAFFIC - absent == travels and not absent & (SPLIT | SLOWEST)


def test_a_backend_that_sees_no_traffic_says_nothing_of_it():
    absent = job(8, 4, device=True, counted=False, parallel={"expert": 8})
    assert absent >= TRAFFIC | SPLIT | SLOWEST and not absent & HOME
    assert not absent & {"memory/device_peak(B)", "throughput/mfu"}


def test_the_layout_says_which_nodes_are_home():
    assert not job(layout=Topology(4, 2, 4)) & HOME and job(4, 2, layout=Topology(4, 4)) >= HOME


@pytest.mark.parametrize(
    ("ranks", "a_node", "expert", "top_k", "there"),
    [(4, 2, 4, 2, True), (4, 2, 4, 1, False), (4, 2, 2, 2, False), (4, 4, 4, 2, False), (4, 1, 2, 2, True)],
)
def test_tokens_are_counted_by_nodes_where_their_experts_can_be_on_several(ranks, a_node, expert, top_k, there):
    absent = job(ranks, a_node, parallel={"expert": expert}, moe={"router": {"type": "switch", "top_k": top_k}})
    assert NODES - absent == (NODES if there else set())


COPIES = {"moe/copies_between_nodes"}
LOGICAL = {"world_size": 4, "ranks_per_node": 2, "expert": 4}


@pytest.mark.parametrize(
    ("ranks", "a_node", "sections", "present"),
    [
        (4, 2, {"parallel": {"expert": 4}}, True),
        (4, 2, {"parallel": {"expert": 2}}, False),  # each node has all experts
        (4, 4, {"parallel": {"expert": 4}}, False),
        (1, 1, {}, False),
        (4, 2, {"parallel": {"expert": 4}, "moe": {"logical_topology": LOGICAL}}, False),
        (
            4,
            2,
            {"parallel": {"expert": 4}, "moe": {"logical_topology": LOGICAL, "dispatch": {"type": "node_dedup"}}},
            True,
        ),
        (4, 2, {"parallel": {"expert": 4}, "model": {"sparse_layers": 0}}, False),
    ],
)
def test_copies_between_nodes(ranks, a_node, sections, present):
    """Counted by the dispatcher, or what leaves home, where a home is a rank of the job."""
    assert bool(COPIES & job(ranks, a_node, **sections)) != present


def test_where_each_node_has_all_experts_every_token_is_at_home():
    assert job(4, 2, parallel={"expert": 2}) >= HOME and not job(4, 2, parallel={"expert": 4}) & HOME


@pytest.mark.parametrize(
    ("moe", "absent", "present"),
    [
        ({"router": {"type": "hash"}}, {"loss/aux", "loss/locality", "moe/undecided_fraction"}, {"moe/drop_fraction"}),
        ({"router": {"type": "switch"}}, {"loss/locality", "moe/locality_divergence"}, {"loss/aux"}),
        ({"router": {"type": "switch", "switch": {"aux_loss_weight": 0.0}}}, {"loss/aux"}, set()),
        ({"router": {"type": "locmoe"}}, set(), {"loss/aux", "loss/locality", "moe/undecided_fraction"}),
        ({"router": {"locmoe": {"rectify": False}}}, {"moe/undecided_fraction"}, {"loss/aux"}),
        ({"router": {"locmoe": {"locality_loss_weight": 0.0}}}, {"loss/locality"}, {"loss/aux"}),
        (
            {"router": {"locmoe": {"locality_loss_weight": 0.0}, "locality_loss": {"initial_weight": 0.1}}},
            set(),
            {"loss/locality", "moe/locality_loss_weight"},
        ),
        (
            {"router": {"locmoe": {"aux_loss_weight": 0.0, "divergence_loss_weight": 0.1}}},
            {"moe/local_strength"},
            {"loss/aux"},
        ),
        ({"router": {"locality_bias": {"kind": "bias"}}}, set(), {"moe/local_strength", "valid/local_term_off/loss"}),
        (
            {"router": {"locality_bias": {"kind": "bias"}}, "evaluation_rules": "none"},
            {"valid/local_term_off/loss"},
            {"moe/local_strength"},
        ),
        ({"router": {"type": "replay"}}, {"loss/aux", "loss/locality"}, {"moe/undecided_fraction"}),
        ({"dispatch": {"type": "ragged"}}, {"moe/drop_fraction", "moe/graphs"}, {"moe/tokens_per_expert"}),
        ({"capacity": {"mode": "adaptive"}}, {"moe/local_share"}, {"moe/graphs", "moe/capacity_slots"}),
    ],
)
def test_routers_dispatchers_and_capacity(moe, absent, present):
    found = job(moe=moe)
    assert absent <= found and not present & found


def test_a_dense_network_has_nothing_of_experts():
    assert {name for name in DEFINITIONS if name.startswith("moe/")} | {"loss/aux"} <= job(model={"sparse_layers": 0})


OWN_ROUTER = "from locmoe_ops.router_registry import RouterSpec\nROUTER = RouterSpec()\ndef build(context): ...\n"
OWN_DISPATCHER = """
from locmoe_ops.dispatch.registry import DispatcherSpec
DISPATCHER = DispatcherSpec(lambda setup: None, lambda setup, slots: [])
def build(collectives, setup, tag): ...
"""


@pytest.fixture
def own_files(tmp_path):
    """A router and a dispatcher of the user's, which declare nothing of their losses and groups."""
    (tmp_path / "own_router.py").write_text(OWN_ROUTER)
    (tmp_path / "own_dispatcher.py").write_text(OWN_DISPATCHER)
    names = add_router_file(str(tmp_path / "own_router.py")), add_dispatcher_file(str(tmp_path / "own_dispatcher.py"))
    yield names
    remove_router(names[0])
    remove_dispatcher(names[1])


def test_what_a_user_adds_may_have_any_loss_and_exchange_anywhere(own_files):
    router, dispatcher = own_files
    absent = job(2, 1, moe={"router": {"type": router}, "dispatch": {"type": dispatcher}})
    assert not absent & ({"loss/aux", "loss/locality"} | parts("all_to_all", "inter", overlapped=True))


def test_a_loss_scale_with_fp16():
    assert "optim/loss_scale" not in job(runtime={"precision": "fp16"})


def test_the_reference_says_the_condition():
    assert DEFINITIONS["loss/task"].where == "every step"
    assert DEFINITIONS["comm/inter_node(B)"].where == "every step, several nodes, backend tcp"
