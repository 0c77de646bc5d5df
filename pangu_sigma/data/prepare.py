"""`pangu-sigma prepare`: text to tokenizer, packed rows in MindRecord files, and a manifest.

1. survey   read every source once: hash its documents, choose those held out for validation (survey.py)
2. skip     where the folder already holds data of the same inputs and settings
3. tokenize train a tokenizer on training documents, or take the one given
4. cluster  documents, where data.prepare.clusters says so (clusters.py)
5. write    rows per split and domain, cluster by cluster, into a folder in the target
6. publish  move the files to their places (publish.py)
"""

import hashlib
import itertools
import json
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema import Config
from pangu_sigma.config.schema_run import PrepareConfig
from pangu_sigma.data import manifest as manifests
from pangu_sigma.data.clusters import SourceClusters, cluster_sources, require_library
from pangu_sigma.data.corpus import prefix
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.domains import DOMAIN_NAMES, domain_weights, is_domain_name
from pangu_sigma.data.manifest import SPLITS, DataManifest
from pangu_sigma.data.outcome import cluster_lines, summary, warn
from pangu_sigma.data.pieces import SENTENCEPIECE_FILE
from pangu_sigma.data.publish import check_target, data_folder, finish_publishing
from pangu_sigma.data.records import pack_rows, write_rows
from pangu_sigma.data.survey import Source, check_keys, passed_over, survey
from pangu_sigma.data.tokenizer import Tokenizer, given_tokenizer, train_tokenizer
from pangu_sigma.errors import OutputNotWritten
from pangu_sigma.runtime.locks import FolderLock
from pangu_sigma.runtime.messages import log
from pangu_sigma.runtime.progress import progress_bar

_TRAIN, _VALIDATION = SPLITS


class SplitRows(NamedTuple):
    cells: Tuple[int, ...]  # rows of each cluster; of all where there are none
    documents: int
    counts: np.ndarray  # (vocab_size,) int64 occurrences of each id in the rows


def prepare(config: Config) -> None:
    """Writes the folder `data.path` from `data.prepare`, or says that it is up to date.

    Files of an earlier `prepare` are replaced when the new ones are whole; all others stay.

    Raises:
        InputError: a bad source, tokenizer or setting; a `data.path` that this command did not write, or that is in
            use.
        OutputNotWritten: the disk is full. The folder that was there before stays as it was.
    """
    sources = config.data.prepare.sources
    if not sources:
        raise InputError("data.prepare.sources: found none; expected domain name -> folder or file")
    for domain in sources:
        if not is_domain_name(domain):
            raise InputError(f"data.prepare.sources: domain name {domain!r}; expected {DOMAIN_NAMES}")
    placement = config.data.placement
    if placement in ("clustered", "domain_cluster_by_node") and not config.data.prepare.clusters.count:
        raise InputError(
            f"data.placement is {placement}, but data.prepare.clusters.count is 0; expected a number of clusters, at "
            "best that of the nodes or a multiple of it"
        )
    target = Path(os.path.realpath(config.data.path))
    with FolderLock(target, "data.path"):
        finish_publishing(target)
        check_target(target, list(sources))
        _prepare(config, target)


def _prepare(config: Config, target: Path) -> None:
    settings = config.data.prepare
    given = given_tokenizer(settings.tokenizer, list(settings.sources)) if settings.tokenizer is not None else None
    sources = [survey(domain, path, settings) for domain, path in settings.sources.items()]
    check_keys(settings, sources)
    fingerprint = _fingerprint(config, sources)
    try:
        found: Optional[DataManifest] = PreparedData.open(str(target), verify=True).manifest
    except InputError:
        found = None
    if found is not None and found.fingerprint == fingerprint:
        print("\n".join([f"{config.data.path}: up to date", *cluster_lines(found), *passed_over(sources)]), flush=True)
        warn(found, settings)
        return
    require_library(settings.clusters)
    with _disk_errors(target), data_folder(target) as folder:
        tokenizer = _make_tokenizer(sources, settings, given, folder)
        _write_data(config, sources, tokenizer, fingerprint, folder)
    written = manifests.read_manifest(target)
    print("\n".join([summary(config.data.path, written), *passed_over(sources)]), flush=True)
    warn(written, settings)


def _fingerprint(config: Config, sources: List[Source]) -> str:
    settings = config.data.prepare
    tokenizer = manifests.describe_file(Path(settings.tokenizer)).sha256 if settings.tokenizer is not None else None
    inputs: Dict[str, Any] = {
        "version": manifests.VERSION,
        "sequence_length": config.model.sequence_length,
        "sources": [(source.domain, source.digest) for source in sources],
        "validation_fraction": settings.validation_fraction,
        "document_bytes": settings.document_bytes,
        "tokenizer": tokenizer or (settings.vocab_size, settings.tokenizer_training_bytes),
    }
    clusters = settings.clusters
    if clusters.count:  # folders without clusters keep the fingerprint that they had before there were any
        mixing = config.data.mixing if clusters.within == "corpus" else None
        inputs["clusters"] = (clusters.count, clusters.within, clusters.dimensions, clusters.seed, mixing)
        if mixing == "weighted":
            inputs["weights"] = config.data.weights
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turns what the disk refuses to take into one line. Sources that cannot be read are named by their reader."""
    try:
        yield
    except BrokenPipeError:  # of this program's own output
        raise
    except OSError as error:
        raise OutputNotWritten(
            f"{error.filename or folder}: cannot be written ({str(error.strerror or error).lower()}); "
            "expected room for the data on a writable disk"
        ) from None


def _make_tokenizer(
    sources: List[Source], settings: PrepareConfig, given: Optional[Tokenizer], folder: Path
) -> Tokenizer:
    if given is not None:
        (folder / given.file_name).write_bytes(given.model)
        return given
    share = settings.tokenizer_training_bytes // len(sources)
    texts: List[str] = []
    for source in sources:  # training pieces spread evenly over the source, at most `share` bytes in all
        rate = min(1.0, share / source.size)
        seen = taken = 0
        for piece in (piece for unit in source.units(settings, _TRAIN) for piece in unit):
            if taken < share and taken <= seen * rate:
                texts.append(prefix(piece, share - taken))
                taken += len(texts[-1].encode("utf-8"))
            seen += len(piece.encode("utf-8"))
    log.info("training a tokenizer on %.1f M characters", sum(map(len, texts)) / 1e6)
    return train_tokenizer(
        texts, [source.domain for source in sources], settings.vocab_size, str(folder / SENTENCEPIECE_FILE)
    )


def _write_data(config: Config, sources: List[Source], tokenizer: Tokenizer, fingerprint: str, folder: Path) -> None:
    weights = domain_weights(config.data.weights, [source.domain for source in sources])
    clusters = cluster_sources(config.data.prepare, config.data.mixing, sources, tokenizer, weights)
    splits: Dict[str, List[SplitRows]] = {
        name: [
            _write_split(config, source, number, name, tokenizer, clusters, folder)
            for number, source in enumerate(sources)
        ]
        for name in SPLITS
    }
    np.save(folder / manifests.TOKEN_COUNTS, np.stack([split.counts for split in splits[_TRAIN]]))
    manifest = DataManifest(
        fingerprint=fingerprint,
        domains=tuple(source.domain for source in sources),
        sequence_length=config.model.sequence_length,
        vocab_size=tokenizer.vocab_size,
        end_of_text=tokenizer.end_of_text,
        rows={name: tuple(sum(split.cells) for split in splits[name]) for name in SPLITS},
        documents={name: tuple(split.documents for split in splits[name]) for name in SPLITS},
        files={},
        sources=tuple(
            manifests.SourceRecord(
                source.counted.files,
                dict(sorted(source.counted.files_passed_over.counts.items())),
                dict(sorted(source.counted.records_passed_over.counts.items())),
            )
            for source in sources
        ),
        clusters=None if clusters is None else _cluster_record(clusters, splits),
    )
    files = {path.name: manifests.describe_file(path) for path in sorted(folder.iterdir())}
    manifests.write_manifest(replace(manifest, files=files), folder)


def _cluster_record(clusters: SourceClusters, splits: Dict[str, List[SplitRows]]) -> manifests.ClusterRecord:
    pieces = [np.bincount(labels, minlength=clusters.count) for labels in clusters.labels[_TRAIN]]
    return manifests.ClusterRecord(
        clusters.within,
        {name: tuple(split.cells for split in splits[name]) for name in SPLITS},
        tuple(tuple(of_domain.tolist()) for of_domain in pieces),
        clusters.separation,
        clusters.digest,
    )


def _write_split(
    config: Config,
    source: Source,
    number: int,
    name: str,
    tokenizer: Tokenizer,
    clusters: Optional[SourceClusters],
    folder: Path,
) -> SplitRows:
    settings = config.data.prepare
    labels = clusters.labels[name][number] if clusters else None
    counts, cells = np.zeros(tokenizer.vocab_size, np.int64), [0] * (clusters.count if clusters else 1)
    documents = int(np.count_nonzero(source.validates == (name == _VALIDATION)))
    cluster = 0

    def encoded() -> Iterator[List[int]]:
        """Reads the source once for each cluster, so that no text is held."""
        nonlocal cluster
        with progress_bar(documents * len(cells), f"{source.domain} {name}", unit="doc") as bar:
            for cluster in range(len(cells)):
                place = itertools.count()
                for unit in source.units(settings, name):
                    bar.update()
                    for piece in unit:
                        if labels is None or labels[next(place)] == cluster:
                            yield [
                                tokenizer.domain_tags[source.domain],
                                *tokenizer.encode(piece),
                                tokenizer.end_of_text,
                            ]

    def counted() -> Iterator[np.ndarray]:
        for row in pack_rows(encoded(), config.model.sequence_length):
            counts[:] += np.bincount(row[1:], minlength=len(counts))
            cells[cluster] += 1
            yield row

    expected_bytes = 4 * source.size // 3
    rows = write_rows(str(folder / manifests.records_name(name, source.domain)), counted(), number, expected_bytes)
    if rows == 0:
        raise InputError(
            f"{source.path}: domain '{source.domain}' fills no {name} row of {config.model.sequence_length + 1} ids; "
            "expected more text, a larger data.prepare.validation_fraction or a shorter model.sequence_length"
        )
    return SplitRows(tuple(cells), documents, counts)
