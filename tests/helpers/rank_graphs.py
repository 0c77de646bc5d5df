"""Graphs of four ranks on two nodes, written by hand: an exchange of all, then a sum in a node and one along a rail."""

from locmoe_ops.topology import Topology
from pangu_sigma.audit.graph import Collective, ExportedGraph, RankGraphs
from pangu_sigma.planner.exchanges import Exchange

TOPOLOGY = Topology(4, 2, 4)  # ranks 0 and 1 on one node, 2 and 3 on the other
WORLD = (0, 1, 2, 3)
PLANNED = [
    Exchange("all_to_all", "tokens", "all_to_all", "ep", 48, 4, "forward"),
    Exchange("gradient", "to shares", "reduce_scatter", "dp_node", 10, 4, "update"),
    Exchange("gradient", "between nodes", "all_reduce", "dp_rail", 5, 4, "update"),
]


def collective(operation, group, members, shape, tag, phase="forward", dtype="float32"):
    return Collective(operation, group, members, shape, dtype, 4, tag, phase, "network/layer")


def graphs():
    """An exchange of all, then a sum in a node and one along a rail, as each rank sees them."""
    ranks = []
    for rank in range(4):
        node, rail = ((0, 1), (2, 3))[rank // 2], ((0, 2), (1, 3))[rank % 2]
        found = (
            collective("all_to_all", "world", WORLD, (4, 4, 3), "all_to_all/layer 0/dispatch"),
            collective("reduce_scatter", f"node_{node[0]}", node, (5,), "gradient/0/scatter"),
            collective("all_reduce", f"rail_{rail[0]}", rail, (5,), "gradient/0/rail"),
        )
        groups = {"world": WORLD, f"node_{node[0]}": node, f"rail_{rail[0]}": rail}
        ranks.append(RankGraphs(rank, (ExportedGraph("step", 1, found, ()),), groups))
    return ranks
