"""Rows on the nodes of their tokens' experts where routes follow from token ids (`data.placement: known_routes`, ours).

Nothing is predicted: before a step the rows of its global batch are read, the tokens that each of them has at home on
each node are counted, and each node is given equally many rows such that most tokens of the batch are at home.

Shape legend: n rows, S tokens a row, G groups, V vocabulary size.
"""

from typing import Sequence

import numpy as np

from pangu_sigma.data.dataset import PreparedData


class KnownRoutes:
    """Counts what rows have at home.

    Args:
        data: where rows are read. domain_groups: expert group of each domain.
        homes: <int64>[nodes, G, V], how many of the experts of an id of a group are on a node, summed over the sparse
            layers whose routes follow from token ids.
    """

    def __init__(self, data: PreparedData, domain_groups: Sequence[int], homes: np.ndarray) -> None:
        self._data, self._domain_groups, self._homes = data, domain_groups, homes

    def nodes(self, split: str, domain: np.ndarray, row: np.ndarray) -> np.ndarray:
        """The nodes of the rows of `split` that have these domains and numbers, <int>[n]; see `assign_rows`."""
        return assign_rows(self.tokens_at_home(split, domain, row))

    def tokens_at_home(self, split: str, domain: np.ndarray, row: np.ndarray) -> np.ndarray:
        """<int64>[n, nodes]: of each row of `split`, by its `domain` and number `row`, <int>[n], the assignments of its
        tokens whose expert is on a node, summed over the sparse layers whose routes follow from token ids.
        """
        counts = np.empty((len(row), len(self._homes)), np.int64)
        for number in np.unique(domain).tolist():
            chosen = domain == number
            ids = self._data.read(split, number, row[chosen])[:, :-1]  # the last one is only a target
            counts[chosen] = self._homes[:, self._domain_groups[number], :][:, ids].sum(-1).T  # (rows, nodes)
        return counts


def assign_rows(tokens_at_home: np.ndarray) -> np.ndarray:
    """Nodes for rows, <int>[n], such that most tokens are at home: to each node equally many rows, or at most the next
    whole number where nodes do not divide n. A linear assignment problem, solved exactly.

    Args:
        tokens_at_home: <int64>[n, nodes].
    """
    from scipy.optimize import linear_sum_assignment  # a quarter of a second to import, for this placement alone

    rows, nodes = tokens_at_home.shape
    places = -(-rows // nodes)
    _, place = linear_sum_assignment(np.repeat(tokens_at_home, places, axis=1), maximize=True)
    node: np.ndarray = place // places
    return node
