"""`pangu-sigma ckpt diff`: where two checkpoints differ, whatever files and parts their tensors are stored in."""

from typing import Any, Dict, Iterator, Optional, Tuple

import numpy as np

from pangu_sigma.checkpoint.format import CheckpointHeader, StoredFile
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.surgery.rewrite import newest


def diff(left: str, right: str) -> int:
    """Prints one line a difference. Returns 0 where there is none, else 1. Raises InputError: no checkpoint, or a
    damaged one.
    """
    with CheckpointReader.open(newest(left)) as a, CheckpointReader.open(newest(right)) as b:
        lines = [*_headers(a.header, b.header), *_files(a, b), *_tensors(a, b)]
        print("\n".join(lines) if lines else f"no difference: {len(a.names())} tensors, step {a.header.step}")
    return 1 if lines else 0


def _headers(a: CheckpointHeader, b: CheckpointHeader) -> Iterator[str]:
    for name, left, right in (
        ("step", a.step, b.step),
        ("contents", a.contents, b.contents),
        ("tokenizer", a.data.tokenizer_sha256, b.data.tokenizer_sha256),
        ("vocabulary", a.data.vocab_size, b.data.vocab_size),
        ("domains", list(a.data.domains), list(b.data.domains)),
    ):
        if left != right:
            yield f"{name}: {left} | {right}"
    sections: Tuple[Tuple[str, Dict[str, Any], Dict[str, Any]], ...] = (
        ("config", a.config, b.config),
        ("sampler", a.sampler, b.sampler),
        ("numbers", a.scalars, b.scalars),
    )
    for section, one, other in sections:
        ours, theirs = dict(_leaves(one)), dict(_leaves(other))
        for key in sorted({*ours, *theirs}):
            if ours.get(key, "absent") != theirs.get(key, "absent"):
                yield f"{section} {key}: {ours.get(key, 'absent')} | {theirs.get(key, 'absent')}"


def _leaves(tree: Dict[str, Any], prefix: str = "") -> Iterator[Tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _files(a: CheckpointReader, b: CheckpointReader) -> Iterator[str]:
    ours, theirs = a.manifest.files, b.manifest.files
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            yield f"file {name}: {_described(ours.get(name))} | {_described(theirs.get(name))}"


def _described(file: Optional[StoredFile]) -> str:
    return "absent" if file is None else f"{file.bytes} bytes, CRC-32 {file.checksum}"


def _tensors(a: CheckpointReader, b: CheckpointReader) -> Iterator[str]:
    """One tensor of each side is in memory at a time."""
    for name in sorted({*a.names(), *b.names()}):
        if name not in b.manifest.tensors or name not in a.manifest.tensors:
            yield f"{name}: only in {a.folder if name in a.manifest.tensors else b.folder}"
            continue
        left, right = a.entry(name), b.entry(name)
        if (left.shape, left.dtype) != (right.shape, right.dtype):
            yield f"{name}: {left.dtype} {list(left.shape)} | {right.dtype} {list(right.shape)}"
            continue
        ours, theirs = a.read(name), b.read(name)
        if ours.tobytes() != theirs.tobytes():
            gap = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
            finite = gap[np.isfinite(gap)]
            largest = f", by up to {finite.max():.3g}" if finite.size else ""
            yield f"{name}: {np.count_nonzero(ours != theirs)} of {ours.size} elements differ{largest}"
