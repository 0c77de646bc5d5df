"""`manifest.json` of a prepared data folder: what it holds, and the size and checksum of every file beside it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Collection, Dict, Optional, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.data.pieces import HUGGING_FACE_FILE, SENTENCEPIECE_FILE
from pangu_sigma.runtime.strict_json import dumps

FORMAT = "pangu-sigma data"
VERSION = 1
NAME = "manifest.json"
TOKENIZERS = (SENTENCEPIECE_FILE, HUGGING_FACE_FILE)  # a folder of data, or a checkpoint, holds one of them
TOKEN_COUNTS = "token_counts.npy"
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class FileEntry:
    """A file beside the manifest: its size in bytes, and its checksum."""

    size: int
    sha256: str


@dataclass(frozen=True)
class SourceRecord:
    """What became of the files that a domain's source named: how many were read, and how many files, and records of
    files that were read, were passed over, by reason.
    """

    files: int
    files_passed_over: Dict[str, int]
    records_passed_over: Dict[str, int]


@dataclass(frozen=True)
class Separation:
    """How well clusters separate.

    Attributes:
        silhouette: mean over documents of (b - a) / max(a, b), cosine distances to the centres of the nearest other
            cluster, b, and of the own, a (the simplified silhouette); 1 is best, 0 is none.
        own_cosine, other_cosine: of a document to the centre of its cluster, and to the nearest other; means.
    """

    silhouette: float
    own_cosine: float
    other_cosine: float


@dataclass(frozen=True)
class ClusterRecord:
    """Clusters of the documents. A domain's rows lie in its file cluster by cluster; a row in which one ends and the
    next begins is the next one's.

    Attributes:
        within: `corpus`, where a cluster has documents of all domains, or `domain`, where each has clusters of its own.
        rows: of each cluster, by split and domain.
        pieces: training documents of each cluster, by domain; a long one counts by its pieces.
        separation: of the corpus' clusters, or one a domain.
        digest: of the clusters of all documents.
    """

    within: str
    rows: Dict[str, Tuple[Tuple[int, ...], ...]]
    pieces: Tuple[Tuple[int, ...], ...]
    separation: Tuple[Separation, ...]
    digest: str


@dataclass(frozen=True)
class DataManifest:
    """Contents of the folder; `rows[split]` holds one count a domain, in the order of `domains`. So does `sources`,
    which is empty in folders that were written before it was recorded. `clusters`: None where there are none.
    """

    fingerprint: str  # of inputs and settings: the same fingerprint, the same data
    domains: Tuple[str, ...]
    sequence_length: int
    vocab_size: int
    end_of_text: int
    rows: Dict[str, Tuple[int, ...]]
    documents: Dict[str, Tuple[int, ...]]
    files: Dict[str, FileEntry]
    sources: Tuple[SourceRecord, ...] = ()
    clusters: Optional[ClusterRecord] = None

    @property
    def tokenizer_name(self) -> str:
        return tokenizer_among(self.files) or SENTENCEPIECE_FILE

    @property
    def tokenizer_sha256(self) -> str:
        return self.files[self.tokenizer_name].sha256


def tokenizer_among(names: Collection[str]) -> Optional[str]:
    """Which of the files of a folder is its tokenizer, None: none."""
    return next((name for name in TOKENIZERS if name in names), None)


def find_tokenizer(folder: Path) -> Optional[Path]:
    """The tokenizer's file in a folder, None: there is none."""
    return next((folder / name for name in TOKENIZERS if (folder / name).is_file()), None)


def records_name(split: str, domain: str) -> str:
    """The file of a domain's rows in a split."""
    return f"{split}-{domain}.mindrecord"


def describe_file(path: Path) -> FileEntry:
    """Size and checksum of the file at `path`. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return FileEntry(path.stat().st_size, digest.hexdigest())


def write_manifest(manifest: DataManifest, folder: Path) -> None:
    """Writes `manifest` into `folder`. Raises OSError."""
    content = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    (folder / NAME).write_text(dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> DataManifest:
    """Raises InputError where the folder, its manifest or a field is missing, malformed or of another version."""
    path = folder / NAME
    if not folder.is_dir():
        raise InputError(f"data.path: '{folder}' is no folder; expected one written by `pangu-sigma prepare`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"data.path: no {NAME} in '{folder}'; expected a folder written by `pangu-sigma prepare`"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected the file that prepare wrote") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: is not of this program; expected format '{FORMAT}'")
    if content.get("version") != VERSION:
        raise InputError(
            f"{path}: version {content.get('version')}; expected {VERSION}: run `pangu-sigma prepare` again"
        )
    try:
        return _from_content(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path}: a field is missing or malformed ({error!r}); expected the file that prepare wrote"
        ) from None


def _from_content(content: Dict[str, Any]) -> DataManifest:
    manifest = DataManifest(
        fingerprint=str(content["fingerprint"]),
        domains=tuple(content["domains"]),
        sequence_length=int(content["sequence_length"]),
        vocab_size=int(content["vocab_size"]),
        end_of_text=int(content["end_of_text"]),
        rows={split: tuple(map(int, content["rows"][split])) for split in SPLITS},
        documents={split: tuple(map(int, content["documents"][split])) for split in SPLITS},
        files={
            str(name): FileEntry(int(entry["size"]), str(entry["sha256"])) for name, entry in content["files"].items()
        },
        sources=tuple(
            SourceRecord(
                int(entry["files"]), _counts(entry["files_passed_over"]), _counts(entry["records_passed_over"])
            )
            for entry in content.get("sources", ())
        ),
        clusters=_clusters(content["clusters"]) if content.get("clusters") is not None else None,
    )
    expected = {
        manifest.tokenizer_name,
        TOKEN_COUNTS,
        *(records_name(s, d) + e for s in SPLITS for d in manifest.domains for e in ("", ".db")),
    }
    if set(manifest.files) != expected:
        raise ValueError("files")
    if any(len(manifest.rows[split]) != len(manifest.domains) for split in SPLITS):
        raise ValueError("rows")
    if len(manifest.sources) not in (0, len(manifest.domains)):
        raise ValueError("sources")
    clusters = manifest.clusters
    if clusters is not None and any(
        [sum(of_domain) for of_domain in clusters.rows[split]] != list(manifest.rows[split]) for split in SPLITS
    ):
        raise ValueError("clusters")
    return manifest


def _clusters(content: Dict[str, Any]) -> ClusterRecord:
    if content["within"] not in ("corpus", "domain"):
        raise ValueError("clusters.within")
    record = ClusterRecord(
        content["within"],
        {split: tuple(tuple(map(int, of_domain)) for of_domain in content["rows"][split]) for split in SPLITS},
        tuple(tuple(map(int, of_domain)) for of_domain in content["pieces"]),
        tuple(
            Separation(float(one["silhouette"]), float(one["own_cosine"]), float(one["other_cosine"]))
            for one in content["separation"]
        ),
        str(content["digest"]),
    )
    counts = [of_domain for split in SPLITS for of_domain in record.rows[split]]
    if len({len(of_domain) for of_domain in (*counts, *record.pieces)}) != 1 or min(map(min, counts)) < 0:
        raise ValueError("clusters.rows")
    return record


def _counts(content: Dict[str, Any]) -> Dict[str, int]:
    return {str(reason): int(count) for reason, count in content.items()}


def check_files(manifest: DataManifest, folder: Path, checksums: bool) -> None:
    """Checks that the files in `folder` have the sizes that `manifest` says, and the `checksums` if asked for. Raises
    InputError naming the file that differs.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: is missing; expected {entry.size} bytes: run `pangu-sigma prepare` again")
        size = path.stat().st_size
        if size != entry.size:
            raise InputError(f"{path}: found {size} bytes; expected {entry.size}: run `pangu-sigma prepare` again")
        if checksums and describe_file(path).sha256 != entry.sha256:
            raise InputError(
                f"{path}: checksum differs from {NAME}; expected the file that prepare wrote: run it again"
            )
