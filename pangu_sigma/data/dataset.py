"""A prepared data folder, opened for reading."""

import hashlib
from pathlib import Path
from typing import Sequence, Tuple

import numpy as np

from locmoe_ops.errors import InputError
from pangu_sigma.data.manifest import (
    NAME,
    TOKEN_COUNTS,
    DataManifest,
    check_files,
    read_manifest,
    records_name,
)
from pangu_sigma.data.records import read_rows

CHECKSUMS_BELOW = 64 << 20  # bytes of all files: so much is hashed within a fraction of a second


class PreparedData:
    """Rows of token ids by split, domain and row number; safe to read from several threads.

    Attributes:
        path: the folder.
        manifest: what it holds.
        domain_token_counts: (domains, vocab_size) int64, how often each id occurs in the training rows of each domain.
    """

    def __init__(self, path: Path, manifest: DataManifest, domain_token_counts: np.ndarray) -> None:
        self.path = path
        self.manifest = manifest
        self.domain_token_counts = domain_token_counts

    @classmethod
    def open(cls, path: str, verify: bool = False) -> "PreparedData":
        """The folder at `path`, checked first: every file's size, and checksums if it is small or `verify` is set.

        Raises:
            InputError: a missing, truncated, corrupt or foreign file, by name.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        small = sum(entry.size for entry in manifest.files.values()) < CHECKSUMS_BELOW
        check_files(manifest, folder, checksums=verify or small)
        counts_path = folder / TOKEN_COUNTS
        try:
            counts = np.load(counts_path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{counts_path}: cannot be read ({error}); expected the file that prepare wrote") from None
        expected = (len(manifest.domains), manifest.vocab_size)
        if counts.shape != expected or counts.dtype != np.int64:
            raise InputError(f"{counts_path}: found {counts.dtype} {counts.shape}; expected int64 {expected}")
        return cls(folder, manifest, counts)

    @property
    def domains(self) -> Tuple[str, ...]:
        return self.manifest.domains

    @property
    def vocab_size(self) -> int:
        return self.manifest.vocab_size

    @property
    def sequence_length(self) -> int:
        return self.manifest.sequence_length

    @property
    def end_of_text(self) -> int:
        return self.manifest.end_of_text

    @property
    def tokenizer_path(self) -> str:
        return str(self.path / self.manifest.tokenizer_name)

    def read_tokenizer(self) -> bytes:
        """The tokenizer's file, as it was when the folder was opened. Raises InputError where it is another one by
        now.
        """
        path = Path(self.tokenizer_path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); expected the file that prepare wrote"
            ) from None
        if hashlib.sha256(content).hexdigest() != self.manifest.tokenizer_sha256:
            raise InputError(
                f"{path}: not the file that {NAME} described when this command began; expected nobody to prepare it "
                "anew meanwhile: start again"
            )
        return content

    @property
    def token_counts(self) -> np.ndarray:
        """(vocab_size,) int64: how often each id occurs in the training rows of all domains."""
        return self.domain_token_counts.sum(axis=0)

    def rows(self, split: str, domain: int) -> int:
        """Rows of domain number `domain` in `split` ("train" or "validation")."""
        return self.manifest.rows[split][domain]

    def cells(self, split: str) -> Tuple[Tuple[int, ...], ...]:
        """Rows of each domain's clusters in `split`, in their order; one cluster where there are none."""
        clusters, rows = self.manifest.clusters, self.manifest.rows[split]
        return clusters.rows[split] if clusters is not None else tuple((count,) for count in rows)

    def read(self, split: str, domain: int, indices: Sequence[int]) -> np.ndarray:
        """Rows `indices` of domain number `domain` in `split`, in that order: (len(indices), S+1) int32.

        Each call opens the file anew (milliseconds): ask for the rows of many steps at once.

        Raises:
            IndexError: an index outside [0, rows(split, domain)).
            InputError: the file cannot be read, or holds ids outside the vocabulary.
        """
        count = self.rows(split, domain)
        for index in indices:
            if not 0 <= index < count:
                raise IndexError(f"row {index} of {split} '{self.domains[domain]}': outside 0..{count - 1}")
        path = self.path / records_name(split, self.domains[domain])
        rows = read_rows(str(path), indices, self.sequence_length + 1)
        if rows.size and not 0 <= rows.min() <= rows.max() < self.vocab_size:
            raise InputError(
                f"{path}: found ids from {rows.min()} to {rows.max()}; expected 0 to {self.vocab_size - 1}"
            )
        return rows
