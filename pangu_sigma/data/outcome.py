"""What `prepare` says of the data that it wrote or found: what there is, and what came out otherwise than asked for."""

from typing import Iterator

import numpy as np

from pangu_sigma.config.schema_run import PrepareConfig
from pangu_sigma.data.manifest import SPLITS, DataManifest
from pangu_sigma.runtime.messages import log

FAR = 2.0  # so many times more, or less, text in validation than asked for is worth a warning
_TRAIN, _VALIDATION = SPLITS


def warn(manifest: DataManifest, settings: PrepareConfig) -> None:
    """Warns, a line each, of data of this `manifest` that came out otherwise than `settings` ask for: validation has
    far more or less of a domain's text, or the tokenizer that was trained fewer pieces.
    """
    wanted = settings.validation_fraction
    for number, domain in enumerate(manifest.domains):
        train, validation = (manifest.rows[split][number] for split in SPLITS)
        share = validation / (train + validation)
        if (
            not wanted / FAR <= share <= wanted * FAR
        ):  # whole documents are drawn, which may be few, or differ in length
            drawn = manifest.documents[_VALIDATION][number]
            documents = drawn + manifest.documents[_TRAIN][number]
            log.warning(
                f"domain '{domain}': {100 * share:.2g} % of its rows validate, where data.prepare.validation_fraction "
                f"asks for {100 * wanted:.2g} %: whole documents are drawn, {drawn} of {documents} here, one at least; "
                "more documents, or documents alike in length, come nearer"
            )
    if settings.tokenizer is None and manifest.vocab_size < settings.vocab_size:
        log.warning(
            f"the tokenizer has {manifest.vocab_size} pieces, where data.prepare.vocab_size asks for "
            f"{settings.vocab_size}: the text that trained it yields no more; more text, or more of it "
            f"(data.prepare.tokenizer_training_bytes, {settings.tokenizer_training_bytes}), would"
        )


def summary(path: str, manifest: DataManifest) -> str:
    """What the folder `path` of this `manifest` holds: a line for all, one a domain, and those of its clusters."""
    lines = [f"{path}: rows of {manifest.sequence_length} + 1 ids, vocabulary {manifest.vocab_size}"]
    for number, domain in enumerate(manifest.domains):
        counts = ", ".join(
            f"{name} {manifest.rows[name][number]} rows of {manifest.documents[name][number]} documents"
            for name in SPLITS
        )
        lines.append(f"  {domain}: {counts}")
    return "\n".join([*lines, *cluster_lines(manifest)])


def cluster_lines(manifest: DataManifest) -> Iterator[str]:
    """Sizes of the clusters of a `manifest` in training rows, and how well they separate; none where there are none."""
    domains, clusters = manifest.domains, manifest.clusters
    if clusters is None:
        return
    names = domains if clusters.within == "domain" else ("corpus",)
    rows, pieces = np.array(clusters.rows[_TRAIN]), np.array(clusters.pieces)  # (domains, clusters)
    for number, (name, found) in enumerate(zip(names, clusters.separation)):
        yield (
            f"  clusters of {name}: silhouette {found.silhouette:.2f}; cosine of a document to its own centre "
            f"{found.own_cosine:.2f}, to the nearest other {found.other_cosine:.2f}"
        )
        chosen = [number] if clusters.within == "domain" else list(range(len(domains)))
        for cluster in range(rows.shape[1]):
            of_domains = ", ".join(f"{domains[d]} {rows[d, cluster]}" for d in chosen if rows[d, cluster])
            which = f" ({of_domains})" if clusters.within == "corpus" else ""
            yield (
                f"    {cluster}: train {rows[chosen, cluster].sum()} rows{which} of {pieces[chosen, cluster].sum()} "
                "documents or pieces"
            )
