"""What a domain's source holds, and which of its documents are held out for validation: read once, before all else."""

import hashlib
from typing import Iterator, List, NamedTuple, Optional

import numpy as np

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema_run import PrepareConfig
from pangu_sigma.data.corpus import RecordKeys, cut, read_documents
from pangu_sigma.data.manifest import SPLITS
from pangu_sigma.data.sources import SourceCount


class Source(NamedTuple):
    """A domain's surveyed source.

    A unit is what lies in one split, as a list of pieces: a document, or one piece where the source is one document.

    Attributes:
        domain, path: its name and place.
        validates: (units,) bool, which of them are held out.
        by_piece: whether units are pieces.
        size: bytes of UTF-8 text.
        digest: of the text.
        counted: which files and records were read.
    """

    domain: str
    path: str
    validates: np.ndarray
    by_piece: bool
    size: int
    digest: str
    counted: SourceCount

    def units(self, settings: PrepareConfig, split: str) -> Iterator[List[str]]:
        """Those of `split`, cut as `settings` say."""
        wanted = split == SPLITS[1]
        for unit, validates in zip(_read_units(self.domain, self.path, settings, self.by_piece), self.validates):
            if validates == wanted:
                yield unit


def _read_units(
    domain: str, path: str, settings: PrepareConfig, by_piece: bool, count: Optional[SourceCount] = None
) -> Iterator[List[str]]:
    keys = RecordKeys(settings.text_key, settings.domain_key)
    for document in read_documents(domain, path, settings.max_bytes_per_domain, count=count, keys=keys):
        pieces = cut(document.text, settings.document_bytes)
        if by_piece:
            yield from ([piece] for piece in pieces)
        else:
            yield pieces


def survey(domain: str, path: str, settings: PrepareConfig) -> Source:
    """Reads a source once. One of a single document is split by pieces, for it cannot lie on both sides whole.

    Args:
        domain, path: its name and place.
        settings: how it is cut, and which share of it validates.

    Raises:
        InputError: there are no two different documents in it, or a file cannot be read.
    """
    count = SourceCount()
    hashes = [_hash(unit) for unit in _read_units(domain, path, settings, False, count)]
    by_piece = len(hashes) == 1
    if by_piece:
        hashes = [_hash(unit) for unit in _read_units(domain, path, settings, by_piece)]
    if len(set(hashes)) < 2:
        count_of, size_of = len(hashes), f"data.prepare.document_bytes ({settings.document_bytes})"
        found = f"holds {count_of} documents, all with the same text"
        if by_piece:
            found = f"is a single document, whose {count_of} pieces of {size_of} are all the same"
        if count_of == 1:
            found = f"is a single document of less than {size_of}"
        raise InputError(
            f"{path}: domain '{domain}' {found}; expected two different ones, to train on and to validate on"
        )
    numbers = np.asarray([int.from_bytes(digest[:8], "big") for digest in hashes], np.uint64)
    size = sum(len(piece.encode("utf-8")) for unit in _read_units(domain, path, settings, by_piece) for piece in unit)
    digest = hashlib.sha256(b"".join(hashes)).hexdigest()
    return Source(domain, path, held_out(numbers, settings.validation_fraction), by_piece, size, digest, count)


def _hash(unit: List[str]) -> bytes:
    return hashlib.sha256("".join(unit).encode("utf-8")).digest()


def held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents validate, (n,) bool <- their text hashes, (n,) uint64: those in the lowest `fraction` of hashes.

    Equal texts share a side. With two different texts or more, each side gets at least one.
    """
    below = hashes < np.uint64(int(fraction * 2.0**64))
    if not below.any():
        return hashes == hashes.min()
    if below.all():
        return hashes != hashes.max()
    return below


def check_keys(settings: PrepareConfig, sources: List[Source]) -> None:
    """Raises InputError where `settings` name fields of records that no source has."""
    text, domain = RecordKeys(settings.text_key, settings.domain_key), RecordKeys()
    records = sum(source.counted.records for source in sources)
    named = {"text_key": (text.text, domain.text), "domain_key": (text.domain, domain.domain)}
    for name, (found, default) in named.items():
        if found != default and not records:
            raise InputError(
                f"data.prepare.{name} is {found}, but no source is a JSONL or Parquet file; expected {default}, its "
                "default"
            )
    if text.domain != domain.domain and not any(source.counted.labelled_records for source in sources):
        raise InputError(
            f"data.prepare.domain_key is {text.domain}, but none of the {records} records of data.prepare.sources "
            "names its domain there; expected a field that they have, or a source a domain without it"
        )


def passed_over(sources: List[Source]) -> List[str]:
    """A line for each source that holds more than was read."""
    described = [(source.domain, source.counted.files, source.counted.describe()) for source in sources]
    return [f"  {domain}: {files} files read; {others}" for domain, files, others in described if others]
