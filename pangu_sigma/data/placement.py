"""Which rank reads which rows of a global batch (`data.placement`): it moves rows between nodes, and changes no rate.

Every node reads equally many rows, and every row is read as often as if rows were shuffled. To that end the rows of
training lie on a line, each as long as its share of the text that is read, alike ones side by side; equal parts of the
line are the nodes'. Where the nodes do not divide what is placed on them, some of it lies on two or more.

Shape legend: D domains, K clusters of a domain's rows.
"""

from dataclasses import dataclass
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.data.domains import BY_DOMAIN, domains_of_node

# Rows of each domain's clusters by split, in the order in which they lie in the domain's file; one cluster where there
# are none.
SplitCells = Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Line:
    """Where the clusters of each domain lie on the line of a zone's rows, which is 1 long.

    Attributes:
        start, length: <float64>[D, K], of a domain's cluster.
        cells: rows of the clusters. A row lies in its cluster's part as far along as among the cluster's rows.
    """

    start: np.ndarray
    length: np.ndarray
    cells: SplitCells

    def places(self, split: str, domain: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Places on the line, <float64>[n], of rows of `split` by their `domain` and number, `row`: <int>[n]."""
        places = np.empty(len(row))
        for number in np.unique(domain).tolist():
            chosen, counts = domain == number, np.asarray(self.cells[split][number])
            ends = np.cumsum(counts)
            cluster = np.searchsorted(ends, row[chosen], side="right")
            along = (row[chosen] - (ends - counts)[cluster] + 0.5) / counts[cluster]
            places[chosen] = self.start[number, cluster] + along * self.length[number, cluster]
        return places


class Zone(NamedTuple):
    """Logical ranks that receive the same domains; both ascending.

    Attributes:
        ranks, domains: of the zone.
        line: says on which of the zone's nodes a row belongs; None: rows go to ranks as they are drawn.
    """

    ranks: Tuple[int, ...]
    domains: Tuple[int, ...]
    line: Optional[Line] = None


@dataclass(frozen=True)
class RowPlacement:
    """Which ranks receive which rows.

    Attributes:
        layout: cluster of the logical ranks.
        zones: its ranks by the domains that they receive.
        notes: lines for the user: what could not be placed as it was meant.
        by_routes: whether rows are placed by routes that are known before the step (`KnownRoutes`).
    """

    layout: Topology
    zones: Tuple[Zone, ...]
    notes: Tuple[str, ...] = ()
    by_routes: bool = False


def make_zones(layout: Topology, placement: str, domains: int) -> List[Zone]:
    """Partition of the ranks of `layout` by the domains that they receive, of so many `domains`: one zone, or, where
    `placement` (as `data.placement` has it) is by domain, as many as nodes and domains can both be divided into.
    """
    if placement not in BY_DOMAIN:
        return [Zone(tuple(range(layout.world_size)), tuple(range(domains)))]
    ranks: Dict[Tuple[int, ...], List[int]] = {}
    for rank in range(layout.world_size):
        ranks.setdefault(domains_of_node(layout.node_of(rank), layout.nodes, domains), []).append(rank)
    return [Zone(tuple(members), of_zone) for of_zone, members in ranks.items()]


def check_placement(placement: str, nodes: int, domains: int, clusters: bool) -> None:
    """Checks that there is something to place.

    Args:
        placement: `data.placement`. nodes: to place it on.
        domains: of the data. clusters: whether it has any.

    Raises InputError: one domain alone is to be placed on many nodes; there are no clusters; or no domain has several
    nodes for its clusters.
    """
    if placement == "domain_by_node" and domains == 1 and nodes > 1:
        raise InputError(
            f"data.placement: domain_by_node places domains on {nodes} nodes, but the data has one, which all of them "
            "would share; expected shuffled, or clustered with data that has clusters (data.prepare.clusters)"
        )
    if placement in ("clustered", "domain_cluster_by_node") and not clusters:
        raise InputError(
            f"data.placement: {placement}, but the prepared data has no clusters; expected shuffled or "
            "domain_by_node, or data prepared anew with data.prepare.clusters.count, as in `pangu-sigma prepare CONFIG "
            f"--set data.prepare.clusters.count={max(2, nodes)}`"
        )
    if placement == "domain_cluster_by_node" and nodes > 1 and domains % nodes == 0:
        raise InputError(
            f"data.placement: domain_cluster_by_node, but each of the {domains} domains has one of {nodes} nodes, "
            "and all of its clusters there; expected domain_by_node, or clustered"
        )


def place_rows(
    layout: Topology,
    placement: str,
    mixing: str,
    names: Sequence[str],
    cells: SplitCells,
    within: Optional[str],
    weights: Sequence[float] = (),
) -> RowPlacement:
    """The placement of rows that a configuration asks for.

    Args:
        layout: cluster of the logical ranks. placement, mixing: `data.placement` and `data.mixing`.
        names: of the domains. cells: rows of their clusters.
        within: what was clustered, see `data.prepare.clusters.within`; None: the data has no clusters.
        weights: shares of the domains where `mixing` is weighted, else none.

    Raises:
        InputError: see `check_placement`.
    """
    check_placement(placement, layout.nodes, len(names), within is not None)
    zones, notes = make_zones(layout, placement, len(names)), []
    if placement != "shuffled" and layout.nodes == 1:
        notes.append(
            f"data.placement: {placement} places nothing on the only node (moe.logical_topology can describe more)"
        )
    elif placement not in ("shuffled", "known_routes"):
        order = _ORDERS.get(placement, "by cluster" if within == "corpus" else "each domain by cluster")
        zones = [_with_line(zone, layout, order, mixing, cells, weights) for zone in zones]
        spread = [one for zone in zones for one in _spread(zone, layout, order, names)]
        if spread:
            what = "domains" if order == "by domain" else "clusters"
            shown = "; ".join([*spread[:3], *([f"and {len(spread) - 3} more"] if len(spread) > 3 else [])])
            notes.append(
                f"data.placement: the {what} do not fill {layout.nodes} nodes evenly; so that the mixture of text "
                f"stays as it is, {shown}"
            )
        if mixing != "balanced" and len(zones) > 1:
            sizes = np.array([sum(of_domain) for of_domain in cells["train"]], np.float64)
            notes.append(_mixture_note(zones, names, mixing, np.asarray(weights) if weights else sizes))
    return RowPlacement(layout, tuple(zones), tuple(notes), placement == "known_routes" and layout.nodes > 1)


_ORDERS = {"domain_by_node": "by domain", "domain_cluster_by_node": "by domain, then cluster"}  # of rows on the line


def _with_line(
    zone: Zone, layout: Topology, order: str, mixing: str, cells: SplitCells, weights: Sequence[float]
) -> Zone:
    """`zone` with the line of its rows, on which all lie in this `order`; where it is that of each domain, every domain
    lies along the whole of it. One node, or one domain to be placed as a whole, leaves nothing to choose.
    """
    if len(zone.ranks) == layout.ranks_per_node or (order == "by domain" and len(zone.domains) == 1):
        return zone
    rows = np.array(cells["train"], np.float64)  # (D, K)
    rows[[d for d in range(len(rows)) if d not in zone.domains]] = 0.0
    of_domain = rows.sum(axis=1, keepdims=True)
    length = rows / np.maximum(of_domain, 1.0)
    if order == "each domain by cluster":
        return zone._replace(line=Line(np.cumsum(length, axis=1) - length, length, cells))
    if mixing == "weighted":
        share = np.array([weights[d] if d in zone.domains else 0.0 for d in range(len(rows))])
        length = length * (share / share.sum())[:, None]
    else:
        length = length / len(zone.domains) if mixing == "balanced" else rows / rows.sum()
    along = length.T if order == "by cluster" else length
    start = (np.cumsum(along) - along.ravel()).reshape(along.shape)  # (D, K) or (K, D) <- (D * K,)
    return zone._replace(line=Line(start.T if order == "by cluster" else start, length, cells))


def _spread(zone: Zone, layout: Topology, order: str, names: Sequence[str]) -> List[str]:
    """The domains or clusters of a zone that lie on several of its nodes, with the share on each."""
    if zone.line is None:
        return []
    start, length = zone.line.start, zone.line.length
    if order == "by domain":
        named = [(names[d], start[d, 0], length[d].sum()) for d in zone.domains]
    elif order == "by cluster":
        named = [(f"cluster {k}", start[0, k], length[:, k].sum()) for k in range(length.shape[1])]
    else:
        each = [(d, k) for d in zone.domains for k in range(length.shape[1])]
        named = [(f"cluster {k} of {names[d]}", start[d, k], length[d, k]) for d, k in each]
    nodes = len(zone.ranks) // layout.ranks_per_node
    first, parts = layout.node_of(zone.ranks[0]), np.arange(nodes) / nodes
    found = []
    for name, begins, whole in named:
        on_node = np.minimum(begins + whole, parts + 1 / nodes) - np.maximum(begins, parts)  # (nodes of the zone,)
        percent = np.rint(100 * np.maximum(on_node, 0.0) / max(whole, 1e-12)).astype(int)
        if np.count_nonzero(percent) > 1:
            shares = [f"{share} % on node {first + node}" for node, share in enumerate(percent.tolist()) if share]
            found.append(f"{name}: {', '.join(shares)}")
    return found


def _mixture_note(zones: Sequence[Zone], names: Sequence[str], mixing: str, wanted: np.ndarray) -> str:
    """Zones read in proportion to their ranks, whatever the size or weight of their domains, `wanted`: <float64>[D]."""
    read = np.zeros(len(wanted))
    for zone in zones:
        chosen, ranks = list(zone.domains), sum(len(other.ranks) for other in zones)
        read[chosen] = len(zone.ranks) / ranks * wanted[chosen] / wanted[chosen].sum()
    shares = [f"{name} {100 * a:.0f} % ({100 * b:.0f} %)" for name, a, b in zip(names, read, wanted / wanted.sum())]
    what = "weight" if mixing == "weighted" else "size"
    return (
        "data.placement: with domain_by_node nodes read equally many rows, so that "
        f"data.mixing {mixing} holds within a node alone; of all text, and in brackets by {what}: {', '.join(shares)}"
    )


def on_nodes(places: np.ndarray, nodes: int) -> np.ndarray:
    """Nodes for rows by their `places` on the line, <float64>[n]: to each of `nodes`, which divide n, equally many."""
    node = np.empty(len(places), np.int64)
    node[np.argsort(places, kind="stable")] = np.arange(len(places)) * nodes // len(places)
    return node
