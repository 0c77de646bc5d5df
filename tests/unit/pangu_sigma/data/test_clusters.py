"""Clusters of documents: topics are found again, sizes are equal, a seed decides."""

import itertools
import sys
from collections import Counter
from typing import List, Sequence, Tuple

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema_run import ClusterConfig
from pangu_sigma.data.clusters import DocumentClusters, assign_evenly, count_tokens, find_clusters, require_library

VOCAB = 80


def topics(sizes: Sequence[int], seed: int = 0, common: int = 20) -> Tuple[List[List[int]], np.ndarray]:
    """Documents of 40 ids, half of them common to all, half from 10 ids of the topic's own; and their topics."""
    generator = np.random.default_rng(seed)
    topic = np.repeat(np.arange(len(sizes)), sizes)
    documents = [
        [*generator.integers(0, common, 20).tolist(), *(common + 10 * t + generator.integers(0, 10, 20)).tolist()]
        for t in topic.tolist()
    ]
    return documents, topic


def clusters_of(documents: List[List[int]], count: int, **options: int) -> DocumentClusters:
    sizes = np.array([float(len(ids)) for ids in documents])
    return find_clusters(count_tokens(documents, VOCAB), sizes, ClusterConfig(count=count, **options))  # type: ignore[arg-type]


def test_counts_of_ids() -> None:
    documents = [[3, 1, 3, 3], [], [79], [0, 1, 0]]
    expected = np.zeros((4, VOCAB))
    for number, ids in enumerate(documents):
        for token, count in Counter(ids).items():
            expected[number, token] = count
    np.testing.assert_array_equal(count_tokens(documents, VOCAB).toarray(), expected)
    assert count_tokens([], VOCAB).shape == (0, VOCAB)


@pytest.mark.parametrize("sizes", [(20, 20), (15, 15, 15), (12, 12, 12, 12)])
def test_topics_are_found_again(sizes: Sequence[int]) -> None:
    documents, topic = topics(sizes)
    found = clusters_of(documents, len(sizes))
    assert len(set(zip(found.labels.tolist(), topic.tolist()))) == len(sizes)  # one cluster a topic, and the reverse
    new, new_topic = topics([3] * len(sizes), seed=1)
    of_topic = dict(zip(topic.tolist(), found.labels.tolist()))
    assert found.nearest(count_tokens(new, VOCAB)).tolist() == [of_topic[t] for t in new_topic.tolist()]


def test_unequal_topics_make_equal_clusters() -> None:
    """Thirty documents of one topic and ten of another: the smaller topic stays whole, and is filled up."""
    documents, topic = topics((30, 10))
    found = clusters_of(documents, 2)
    assert np.bincount(found.labels).tolist() == [20, 20]
    assert len(set(found.labels[topic == 1].tolist())) == 1


def test_alike_clusters_are_neighbours() -> None:
    """Two pairs of topics that share half of their words: in whatever order they come, pairs stand side by side."""
    generator = np.random.default_rng(2)
    documents, pair = [], []
    for number in range(80):
        topic = number % 4
        own = 20 + 10 * topic + generator.integers(0, 10, 15)
        shared = 60 + 10 * (topic % 2) + generator.integers(0, 10, 15)
        documents.append([*own.tolist(), *shared.tolist()])
        pair.append(topic % 2)
    found = clusters_of(documents, 4)
    assert len({(label // 2, of_pair) for label, of_pair in zip(found.labels.tolist(), pair)}) == 2


def test_a_seed_decides() -> None:
    generator = np.random.default_rng(3)
    documents = generator.integers(0, VOCAB, (60, 30)).tolist()  # no topics: any clusters will do
    first, again, other = (clusters_of(documents, 4, seed=seed).labels for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_separation_against_a_loop() -> None:
    documents, _ = topics((10, 10, 10))
    found = clusters_of(documents, 3)
    features = found.steps[1].transform(found.steps[0].transform(count_tokens(documents, VOCAB)))
    own, other, silhouette = [], [], []
    for vector, label in zip(features, found.labels):
        cosines = [float(vector @ centre) / np.linalg.norm(vector) for centre in found.centres]
        near, far = 1 - cosines.pop(label), 1 - max(cosines)
        own.append(1 - near)
        other.append(1 - far)
        silhouette.append((far - near) / max(far, near))
    told = found.separation
    np.testing.assert_allclose(
        [told.silhouette, told.own_cosine, told.other_cosine],
        [np.mean(silhouette), np.mean(own), np.mean(other)],
        rtol=1e-9,  # the same sums in another order
    )
    without_topics = np.random.default_rng(0).integers(0, VOCAB, (30, 40)).tolist()
    assert told.silhouette > clusters_of(without_topics, 3).separation.silhouette + 0.2


@pytest.mark.parametrize("seed", range(5))
def test_two_equal_halves_are_the_best_there_are(seed: int) -> None:
    cosines = np.random.default_rng(seed).random((8, 2))
    labels = assign_evenly(cosines, np.ones(8))
    assert np.bincount(labels).tolist() == [4, 4]
    best = max(
        sum(cosines[i, int(i in half)] for i in range(8)) for half in map(set, itertools.combinations(range(8), 4))
    )
    assert cosines[np.arange(8), labels].sum() == pytest.approx(best)


@pytest.mark.parametrize(("documents", "clusters"), [(50, 2), (50, 3), (201, 7), (9, 8)])
def test_no_cluster_is_too_large_by_a_document(documents: int, clusters: int) -> None:
    generator = np.random.default_rng(documents)
    sizes = generator.integers(1, 50, documents).astype(float)
    cosines = generator.random((documents, clusters)) + np.linspace(1, 0, clusters)  # all like the first best
    labels = assign_evenly(cosines, sizes)
    totals = [sum(sizes[i] for i in range(documents) if labels[i] == k) for k in range(clusters)]
    assert sum(totals) == sizes.sum() and max(totals) < sizes.sum() / clusters + sizes.max()


@pytest.mark.parametrize("documents", [[[1, 2]] * 5, [[1]] * 30, [[1, 2]] * 20 + [[3] * 500]])
def test_hardly_any_difference_is_no_error(documents: List[List[int]]) -> None:
    found = clusters_of(documents, 4)
    assert set(found.labels.tolist()) <= {0, 1, 2, 3} and np.isfinite(found.separation.silhouette)


def test_too_few_documents_are_refused() -> None:
    message = r"clusters\.count is 4, but the corpus has 4 training documents .*; expected more documents"
    with pytest.raises(InputError, match=message):
        clusters_of([[1], [2], [3], [4]], 4)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    require_library(ClusterConfig())
    with pytest.raises(
        InputError, match=r"clusters\.count is 2, but scikit-learn is not installed; .* pip install scikit-learn"
    ):
        require_library(ClusterConfig(count=2))
