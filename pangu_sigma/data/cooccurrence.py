"""Nodes of token ids by the rows they occur in, for `moe.router.hash.balance: cooccurrence`."""

from typing import Optional

import numpy as np
from scipy.sparse import csr_matrix

from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import router_spec
from locmoe_ops.routers.cooccurrence import split_by_cooccurrence
from locmoe_ops.topology import ExpertPlacement, Topology, nodes_of_experts
from pangu_sigma.config.derived import layer_routers
from pangu_sigma.config.schema import Config
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.domains import resolve_domain_groups

MOST_ROWS = 20_000  # of training text that co-occurrence is counted in; every k-th row, if there are more


def nodes_of_ids(
    config: Config, data: PreparedData, vocab_size: int, layout: Optional[Topology]
) -> Optional[np.ndarray]:
    """<int32>[G, vocab_size]: the node of each id, for the text of each group by itself; the share of the text that a
    node gets is its share of the group's experts. None where no router asks for it.

    Args:
        config: of the run. data: its training rows are read.
        vocab_size: of the model, at least the data's.
        layout: its nodes; None: not known.

    Raises InputError: a router asks for it, and the nodes are not known.
    """
    moe = config.moe
    kinds = [router_spec(one.type).map_of_ids(one.own) for one in layer_routers(config)]
    if "cooccurrence" not in kinds:
        return None
    if layout is None:
        raise InputError(
            "moe.router.hash.balance is cooccurrence, whose maps follow from the nodes of a job that is not there yet; "
            "expected moe.logical_topology, the cluster that locality refers to"
        )
    experts = nodes_of_experts(
        layout, ExpertPlacement(moe.num_experts, moe.num_groups, layout.expert, moe.expert_placement)
    )
    groups = resolve_domain_groups(moe.domain_groups, len(data.domains), moe.num_groups)
    stride = -(-sum(data.rows("train", domain) for domain in range(len(groups))) // MOST_ROWS)
    found = np.zeros((moe.num_groups, vocab_size), np.int32)
    for group in sorted(set(groups)):
        domains = [domain for domain, of_domain in enumerate(groups) if of_domain == group]
        rows = [data.read("train", domain, range(0, data.rows("train", domain), stride)) for domain in domains]
        ids = np.concatenate(rows)[:, :-1]  # (n, S)
        index = np.repeat(np.arange(len(ids)), ids.shape[1])
        counts = csr_matrix((np.ones(ids.size, np.int64), (index, ids.ravel())), shape=(len(ids), vocab_size))
        shares = np.bincount(experts[group], minlength=layout.nodes).tolist()
        found[group] = split_by_cooccurrence(counts, shares)
    return found
