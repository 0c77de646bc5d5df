"""Nodes of ids by the documents they occur in."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from locmoe_ops.routers.cooccurrence import split_by_cooccurrence


def topics(count: int, documents: int, noise: float, seed: int = 0) -> np.ndarray:
    """<int64>[R, V]: documents in turn of `count` topics with 10 ids each, and a share of ids from anywhere."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((documents, 10 * count), np.int64)
    for document in range(documents):
        for _ in range(40):
            anywhere = rng.random() < noise
            counts[document, rng.integers(10 * count) if anywhere else 10 * (document % count) + rng.integers(10)] += 1
    return counts


def at_home(documents: np.ndarray, node: np.ndarray, nodes: int) -> int:
    """Tokens at home where every document is on the node that has most of it."""
    return sum(max(row[node == s].sum() for s in range(nodes)) for row in documents)


@pytest.mark.parametrize("count, nodes", [(2, 2), (4, 2), (4, 4)])
def test_topics_are_found_whatever_the_order_of_documents(count, nodes):
    """Documents of all topics alternate, so that the first halves hold the same mixture; noise breaks the tie. Shares
    of the text are kept to a few tokens, and topics are not equally long: some ids are left to another node.
    """
    documents = topics(count, 60, noise=0.2)
    node = split_by_cooccurrence(csr_matrix(documents), [1] * nodes)
    of_topics = [np.bincount(node[10 * topic : 10 * topic + 10], minlength=nodes) for topic in range(count)]
    assert all(of_topic.max() >= 7 for of_topic in of_topics)
    assert np.bincount([of_topic.argmax() for of_topic in of_topics]).tolist() == [count // nodes] * nodes
    rng = np.random.default_rng(1)
    others = [at_home(documents, rng.permutation(np.arange(10 * count) % nodes), nodes) for _ in range(100)]
    assert at_home(documents, node, nodes) > 1.2 * max(others)


@pytest.mark.parametrize("shares", [[1, 1], [3, 1], [1, 0, 1], [2, 1, 1, 2], [0, 5]])
def test_each_node_gets_its_share_of_the_text(shares):
    """To one id of the largest count at every halving: what finds no room is left to the other half."""
    documents = topics(4, 80, noise=0.4)
    counts = documents.sum(0)
    text = np.bincount(split_by_cooccurrence(csr_matrix(documents), shares), counts, minlength=len(shares))
    wanted = np.array(shares) / sum(shares) * counts.sum()
    assert np.abs(text - wanted).max() <= 2 * counts.max()
    assert all(found == 0 for found, share in zip(text, shares) if share == 0)


def test_ids_that_never_occur_are_dealt_out_by_shares():
    documents = np.zeros((4, 44), np.int64)
    documents[:, :4] = 1
    node = split_by_cooccurrence(csr_matrix(documents), [3, 0, 1])
    assert np.bincount(node[4:]).tolist() == [30, 0, 10]


def test_the_same_on_every_rank_and_for_any_scale_of_shares():
    documents = csr_matrix(topics(3, 50, noise=0.3))
    first, again, scaled = (split_by_cooccurrence(documents, shares) for shares in ([1, 1], [1, 1], [8, 8]))
    assert first.tolist() == again.tolist() == scaled.tolist() and first.dtype == np.int32
