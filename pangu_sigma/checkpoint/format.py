"""`manifest.json`: what a checkpoint holds, where each tensor lies, and the checksums that say whether it still does.

The file is `{"format", "version", "checksum", "body"}`; the checksum is that of the body, so that the manifest itself
cannot change unnoticed. JSON holds no code, and nothing in it is evaluated.
"""

import json
import math
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.errors import DamagedCheckpoint

FORMAT = "pangu-sigma checkpoint"
VERSION = 2
NAME = "manifest.json"
CONTENTS = ("training", "weights")
LARGEST = 2**63 - 1  # of any count; Python does not print integers of some thousand digits, and no file is larger
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}  # bytes an element


@dataclass(frozen=True)
class ShardPart:
    """A stored part of a tensor: the shard it lies in, and the CRC-32 of its bytes."""

    shard: str
    checksum: str


@dataclass(frozen=True)
class TensorEntry:
    """A tensor: `shape` as a whole; the parts that it is stored in, equal ones along `axis` in `blocks` stretches (see
    `locmoe_ops.shard_spec.ShardSpec`), or one that is all of it.
    """

    shape: Tuple[int, ...]
    dtype: str  # as safetensors spells it
    parts: Tuple[ShardPart, ...]
    axis: int = 0
    blocks: int = 1

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype]

    def key(self, name: str, index: int) -> str:
        """Name of part `index` inside its shard."""
        return name if len(self.parts) == 1 else f"{name}[{index}/{len(self.parts)}]"


@dataclass(frozen=True)
class DataState:
    """What ids mean: the tokenizer (SHA-256 of its file), rows of the word table, domains by number; and which prepared
    data training drew from (None: none).
    """

    tokenizer_sha256: Optional[str]
    vocab_size: int
    domains: Tuple[str, ...]
    fingerprint: Optional[str] = None


@dataclass(frozen=True)
class CheckpointHeader:
    """Everything but the tensors.

    Attributes:
        step: optimizer steps done.
        contents: `training` (a run can resume) or `weights`.
        config: resolved, as nested dicts.
        data: what ids mean.
        sampler: what the rows of later steps follow from, with the next step (from 0).
        rng: what dropout and jitter of later steps follow from.
        scalars: values of the state's single numbers by name, loss scale and counters among them.
        origin: how the checkpoint came about, oldest first; empty for one that training wrote.
    """

    step: int
    contents: str
    config: Dict[str, Any]
    data: DataState
    sampler: Dict[str, Any]
    rng: Dict[str, Any]
    scalars: Dict[str, float]
    origin: Tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredFile:
    """A file that a checkpoint carries besides its shards, such as the tokenizer."""

    bytes: int
    checksum: str  # CRC-32


@dataclass(frozen=True)
class CheckpointManifest:
    """All that a checkpoint says of itself.

    Attributes:
        header: everything but the tensors.
        tensors: by name.
        shards: bytes of each shard file by name.
        files: other files by name; none in checkpoints of releases that wrote no such files.
    """

    header: CheckpointHeader
    tensors: Dict[str, TensorEntry]
    shards: Dict[str, int]
    files: Dict[str, StoredFile] = field(default_factory=dict)


def store_files(folder: Path, files: Mapping[str, bytes]) -> Dict[str, StoredFile]:
    """Writes and syncs `files`, content by name, into a checkpoint's `folder`, which is there already. Returns what its
    manifest says of them. Raises OSError.
    """
    for name, content in files.items():
        with open(folder / _file_name(name), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    return {name: StoredFile(len(content), crc32(content)) for name, content in files.items()}


def write_manifest(manifest: CheckpointManifest, folder: Path) -> None:
    """Writes and syncs `folder/manifest.json`."""
    body = _to_body(manifest)
    content = {"format": FORMAT, "version": VERSION, "checksum": _checksum(body), "body": body}
    with open(folder / NAME, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> CheckpointManifest:
    """Reads and checks `folder/manifest.json`.

    Raises:
        DamagedCheckpoint: it is not in the folder, or not as it was written.
        InputError: there is no such folder, or it is of another version.
    """
    path = folder / NAME
    if not path.is_file():
        kind = DamagedCheckpoint if folder.is_dir() else InputError
        raise kind(f"{folder}: no {NAME} there; expected a checkpoint folder such as RUN/checkpoints/step_100")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    try:
        if not isinstance(content, dict):
            raise _damaged(path, "no mapping at top level")
        if "format_version" in content and "files" in content:
            raise InputError(
                f"{path}: format version {content['format_version']}, of an earlier release of this program; expected "
                f"{VERSION}"
            )
        if content.get("format") != FORMAT:
            raise _damaged(path, f"format {str(content.get('format'))[:40]!r}, expected {FORMAT!r}")
        body, version = content.get("body"), str(content.get("version"))[:40]
        if content.get("version") != VERSION and isinstance(body, dict) and body.get("version") == VERSION:
            raise _damaged(path, f"format version {version} outside, {VERSION} inside")
        if content.get("version") != VERSION:
            raise InputError(f"{path}: format version {version}; expected {VERSION}")
        if set(content) != {"format", "version", "checksum", "body"} or content["checksum"] != _checksum(body):
            raise _damaged(path, "its checksum differs")
        return _from_body(content["body"])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None


def _damaged(path: Path, reason: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"{path}: not a checkpoint manifest ({' '.join(reason.split())}); expected one as this program wrote it"
    )


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _checksum(body: Any) -> str:
    return crc32(json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii"))


def crc32(data: Any) -> str:
    """CRC-32 of a bytes-like object, as eight hexadecimal digits. It finds every error of up to 32 bits in a row, and
    any other but one in 2**32; it is no protection against forgery.
    """
    return f"{zlib.crc32(data):08x}"


def _to_body(manifest: CheckpointManifest) -> Dict[str, Any]:
    header = manifest.header
    return {
        "version": VERSION,  # under the checksum: a digit that turned into another is damage, not another release
        "step": header.step,
        "contents": header.contents,
        "origin": list(header.origin),
        "config": header.config,
        "data": {
            "tokenizer_sha256": header.data.tokenizer_sha256,
            "vocab_size": header.data.vocab_size,
            "domains": list(header.data.domains),
            "fingerprint": header.data.fingerprint,
        },
        "sampler": header.sampler,
        "rng": header.rng,
        "scalars": header.scalars,
        "shards": manifest.shards,
        "tensors": {
            name: {
                "shape": list(entry.shape),
                "dtype": entry.dtype,
                "slice": {"axis": entry.axis, "blocks": entry.blocks} if len(entry.parts) > 1 else None,
                "parts": [{"shard": part.shard, "crc32": part.checksum} for part in entry.parts],
            }
            for name, entry in manifest.tensors.items()
        },
        "files": {name: {"bytes": file.bytes, "crc32": file.checksum} for name, file in manifest.files.items()},
    }


def _from_body(body: Dict[str, Any]) -> CheckpointManifest:
    data = body["data"]
    header = CheckpointHeader(
        step=_count(body["step"]),
        contents=_one_of(body["contents"], CONTENTS),
        config={str(name): dict(section) for name, section in body["config"].items()},
        data=DataState(
            _text_or_none(data["tokenizer_sha256"]),
            _count(data["vocab_size"]),
            tuple(map(str, data["domains"])),
            _text_or_none(data["fingerprint"]),
        ),
        sampler=dict(body["sampler"]),
        rng=dict(body["rng"]),
        scalars={str(name): float(value) for name, value in body["scalars"].items()},
        origin=tuple(map(str, body["origin"])),
    )
    shards = {_file_name(name): _count(size) for name, size in body["shards"].items()}
    tensors = {name: _tensor_from_body(name, entry, shards) for name, entry in body["tensors"].items()}
    # Version 2 began without `files`; a release that does not know them reads the rest as it is.
    files = {
        _file_name(name): StoredFile(_count(file["bytes"]), str(file["crc32"]))
        for name, file in body.get("files", {}).items()
    }
    return CheckpointManifest(header, tensors, shards, files)


def _tensor_from_body(name: str, entry: Dict[str, Any], shards: Dict[str, int]) -> TensorEntry:
    parameter, at, expert = name.rpartition("@")  # an expert's number is behind "@" if there is one
    is_expert = bool(parameter) and expert.isascii() and expert.isdecimal() and len(expert) < 10
    if not name.isprintable() or (at and not is_expert):
        raise ValueError(f"tensor {name[:80]!r} is no parameter's name")
    cut: Dict[str, Any] = entry["slice"] or {"axis": 0, "blocks": 1}
    parts: List[ShardPart] = [ShardPart(_one_of(part["shard"], shards), str(part["crc32"])) for part in entry["parts"]]
    shape = tuple(_count(size) for size in entry["shape"])
    axis, blocks = _count(cut["axis"]), _count(cut["blocks"])
    if not parts or (len(parts) > 1 and (axis >= len(shape) or not blocks or shape[axis] % (blocks * len(parts)))):
        raise ValueError(f"{len(parts)} parts of shape {list(shape)}")
    if math.prod(shape) > LARGEST // 8:
        raise ValueError(f"shape {list(shape)} is of more elements than any file holds")
    return TensorEntry(shape, _one_of(entry["dtype"], DTYPES), tuple(parts), axis, blocks)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise ValueError(f"found {str(value)[:40]}, expected an integer from 0 to 2**63 - 1")
    return value


def _text_or_none(value: Any) -> Optional[str]:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"found {str(value)[:40]}, expected a string or null")
    return value


def _one_of(value: Any, choices: Any) -> str:
    if value not in choices:
        raise ValueError(f"unknown {str(value)[:80]}")
    return str(value)


def _file_name(name: str) -> str:
    """A shard or another file lies in the checkpoint's own folder, whatever a manifest says."""
    if (
        not name
        or name != os.path.basename(name)
        or name in (".", "..", NAME)
        or not name.isprintable()
        or len(name) > 200
    ):
        raise ValueError(f"file {name[:80]!r} is no plain file name")
    return name
