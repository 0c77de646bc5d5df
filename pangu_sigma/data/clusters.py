"""Clusters of documents, found without labels, so that those of one cluster can be placed on one node.

1. count     token ids of each document; long documents count by their pieces
2. weigh     tf-idf, so that ids that stand in every document count little; truncated SVD; vectors of length 1
3. cluster   k-means for the first centres, then balanced assignment and new centres in turn
4. order     clusters whose centres are near become neighbours: nodes of several clusters get alike ones

All runs on one thread, so that a seed gives the same clusters on the same installation.

Shape legend: N documents, V vocabulary, F features, K clusters.
"""

import hashlib
import itertools
import warnings
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.sparse import csr_matrix, vstack

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema_run import ClusterConfig, PrepareConfig
from pangu_sigma.data.manifest import SPLITS, Separation
from pangu_sigma.data.survey import Source
from pangu_sigma.data.tokenizer import Tokenizer

_ROUNDS = 30  # of assignment and new centres, if they do not settle before


@dataclass(frozen=True)
class DocumentClusters:
    """Clusters of training documents, and where others belong.

    Attributes:
        labels: <int>[N], the cluster of each.
        centres: <float64>[K, F], of length 1.
        separation: of the clusters.
        steps: what turns counts of ids into features, in order.
    """

    labels: np.ndarray
    centres: np.ndarray
    separation: Separation
    steps: Tuple[Any, ...]

    def nearest(self, counts: csr_matrix) -> np.ndarray:
        """The cluster with the nearest centre, <int>[M], of other documents by their `counts`, <float64>[M, V]."""
        return np.argmax(_features(self.steps, counts) @ self.centres.T, axis=1)


@dataclass(frozen=True)
class SourceClusters:
    """Clusters of all documents of a corpus.

    Attributes:
        within, count: as `data.prepare.clusters` has them.
        labels: <int>[N] by split and domain, the cluster of each document, in the order in which they are read.
        separation: of the corpus' clusters, or one a domain.
    """

    within: str
    count: int
    labels: Mapping[str, Sequence[np.ndarray]]
    separation: Tuple[Separation, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of all labels: another version of the library may find others."""
        whole = [labels.astype("<i4").tobytes() for split in SPLITS for labels in self.labels[split]]
        return hashlib.sha256(b"|".join(whole)).hexdigest()


def require_library(settings: ClusterConfig) -> None:
    """Raises InputError where `settings` ask for clusters, but what finds them is not installed."""
    if not settings.count:
        return
    try:
        import sklearn.cluster  # noqa: F401
    except ImportError:
        raise InputError(
            f"data.prepare.clusters.count is {settings.count}, but scikit-learn is not installed; expected it, as "
            "pip install scikit-learn does, or 0"
        ) from None


def count_tokens(documents: Iterable[Sequence[int]], vocab_size: int) -> csr_matrix:
    """How often each id stands in each of `documents`, <float64>[N, V]; ids are below `vocab_size`."""
    columns: List[np.ndarray] = []
    values: List[np.ndarray] = []
    for ids in documents:
        found, counts = np.unique(np.asarray(ids, np.int32), return_counts=True)
        columns.append(found)
        values.append(counts)
    ends = np.cumsum([0, *map(len, columns)])
    none = [np.empty(0, np.int32)]
    return csr_matrix(
        (np.concatenate(values or none).astype(np.float64), np.concatenate(columns or none), ends),
        shape=(len(columns), vocab_size),
    )


def find_clusters(
    counts: csr_matrix, sizes: np.ndarray, settings: ClusterConfig, of_what: str = "the corpus"
) -> DocumentClusters:
    """Clusters of equal size, as nearly as whole documents allow.

    Args:
        counts: <float64>[N, V], see `count_tokens`.
        sizes: <float64>[N], what each document adds to its cluster's size.
        settings: how many clusters, features and which seed.
        of_what: the documents' name in messages.

    Raises:
        InputError: there are fewer documents than clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfTransformer
    from threadpoolctl import threadpool_limits

    documents, vocabulary = counts.shape
    if documents <= settings.count:
        raise InputError(
            f"data.prepare.clusters.count is {settings.count}, but {of_what} has {documents} training documents (or "
            "pieces of data.prepare.document_bytes); expected more documents, smaller pieces, or fewer clusters"
        )
    # Documents that are all alike, or fewer different ones than clusters, do no harm.
    with threadpool_limits(1), warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        weigh = TfidfTransformer(sublinear_tf=True).fit(counts)
        reduce = TruncatedSVD(min(settings.dimensions, documents, vocabulary), random_state=settings.seed)
        steps = (weigh, reduce.fit(weigh.transform(counts)))
        features = _features(steps, counts)
        first = KMeans(settings.count, n_init=10, random_state=settings.seed).fit(features, sample_weight=sizes)
        labels, centres = _settle(features, sizes, first.cluster_centers_)
        order = leaves_list(linkage(centres, "average", optimal_ordering=True))
    labels, centres = np.argsort(order)[labels], centres[order]
    cosines, own = features @ centres.T, np.eye(len(centres), dtype=bool)[labels]  # (N, K)
    to_own, to_other = cosines[own], np.where(own, -np.inf, cosines).max(axis=1)
    near, far = 1.0 - to_own, 1.0 - to_other
    silhouette = (far - near) / np.maximum(np.maximum(near, far), 1e-12)
    separation = Separation(float(silhouette.mean()), float(to_own.mean()), float(to_other.mean()))
    return DocumentClusters(labels, centres, separation, steps)


def _features(steps: Sequence[Any], counts: csr_matrix) -> np.ndarray:
    """<float64>[N, F] of length 1, or 0 where nothing is known of a document."""
    found = counts
    for step in steps:
        found = step.transform(found)
    return _of_length_one(found)


def _of_length_one(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _settle(features: np.ndarray, sizes: np.ndarray, centres: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Labels, <int>[N], and centres of the best of some rounds: those whose documents are nearest to their centres."""
    labels = np.full(len(features), -1)
    best, best_score = (labels, centres), -np.inf
    for _ in range(_ROUNDS):
        centres = _of_length_one(centres)
        cosines = features @ centres.T  # (N, K) <- (N, F), (F, K)
        before, labels = labels, assign_evenly(cosines, sizes)
        score = float((cosines[np.arange(len(labels)), labels] * sizes).sum())
        if score > best_score:
            best, best_score = (labels, centres), score
        if np.array_equal(before, labels):
            break
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, features * sizes[:, None])
        centres = np.where(np.any(sums != 0.0, axis=1, keepdims=True), sums, centres)  # an empty cluster's stays
    return best


def assign_evenly(cosines: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """A cluster for each document, <int>[N], none larger than the mean by a whole document.

    Whoever would lose most by its second choice has its first one first. When a cluster is full, those that are left
    choose among the others.

    Args:
        cosines: <float64>[N, K], of documents to centres.
        sizes: <float64>[N], of the documents.
    """
    documents, clusters = cosines.shape
    labels = np.full(documents, -1)
    room = np.full(clusters, sizes.sum() / clusters)
    while (waiting := np.flatnonzero(labels < 0)).size:
        vacant = np.flatnonzero(room > 1e-9 * sizes.sum())
        if not vacant.size:  # by rounding alone
            vacant = np.array([np.argmax(room)])
        among = cosines[np.ix_(waiting, vacant)]
        choice = np.argmax(among, axis=1)
        ranked = np.sort(among, axis=1)
        loss = ranked[:, -1] - ranked[:, -2] if len(vacant) > 1 else np.zeros(len(waiting))
        order = np.argsort(-loss, kind="stable")
        waiting, choice = waiting[order], choice[order]
        filled = np.cumsum(np.eye(len(vacant))[choice] * sizes[waiting, None], axis=0)  # (waiting, vacant)
        is_full = np.any(filled >= room[vacant], axis=1) if len(vacant) > 1 else np.zeros(len(waiting), bool)
        taken = int(np.argmax(is_full)) + 1 if is_full.any() else len(waiting)
        labels[waiting[:taken]] = vacant[choice[:taken]]
        room[vacant] -= filled[taken - 1]
    return labels


def cluster_sources(
    settings: PrepareConfig,
    mixing: str,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    weights: Sequence[float] = (),
) -> Optional[SourceClusters]:
    """Clusters of all documents that `settings` ask for; None where they ask for none. Validation does not shape them.

    Args:
        settings: what is read of a source, and which clusters are wanted.
        mixing: `data.mixing`: whether the corpus is every domain in equal shares, in those of `weights`, or all text as
            it is.
        sources: of the domains. tokenizer: whose ids are counted. weights: shares of the domains, if any.

    Raises:
        InputError: there are fewer documents than clusters.
    """
    wanted, train, validation = settings.clusters, *SPLITS
    if not wanted.count:
        return None
    counts: Dict[str, List[csr_matrix]] = {split: [] for split in SPLITS}
    for split, source in itertools.product(SPLITS, sources):
        pieces = (tokenizer.encode(piece) for unit in source.units(settings, split) for piece in unit)
        counts[split].append(count_tokens(pieces, tokenizer.vocab_size))
    sizes = [np.asarray(of_domain.sum(axis=1)).ravel() for of_domain in counts[train]]
    labels: Dict[str, List[np.ndarray]] = {split: [] for split in SPLITS}
    separation = []
    parts = [[d] for d in range(len(sources))] if wanted.within == "domain" else [list(range(len(sources)))]
    for part in parts:
        share = [sizes[d] if mixing == "proportional" else sizes[d] / sizes[d].sum() for d in part]
        share = [of_domain * weights[d] for d, of_domain in zip(part, share)] if weights else share
        of_what = f"domain '{sources[part[0]].domain}'" if len(part) == 1 else "the corpus"
        found = find_clusters(vstack([counts[train][d] for d in part], "csr"), np.concatenate(share), wanted, of_what)
        labels[train] += np.split(found.labels, np.cumsum([len(sizes[d]) for d in part])[:-1])
        labels[validation] += [found.nearest(counts[validation][d]) for d in part]
        separation.append(found.separation)
    return SourceClusters(wanted.within, wanted.count, labels, tuple(separation))
