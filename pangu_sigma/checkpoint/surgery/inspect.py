"""`pangu-sigma ckpt inspect`: what a checkpoint holds, from its manifest alone; and `ckpt verify`: every byte of
checkpoints against the checksums that were taken when they were written.
"""

from pathlib import Path
from typing import Callable, Dict, List, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.folders import resolve
from pangu_sigma.checkpoint.format import VERSION, CheckpointHeader, TensorEntry
from pangu_sigma.checkpoint.names import MOMENTS, is_training_state, split_name
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.surgery.rewrite import newest
from pangu_sigma.errors import DamagedCheckpoint
from pangu_sigma.runtime.text_table import TableColumn, text_table, wrapped

KINDS: Dict[str, Callable[[str], bool]] = {
    "weights of experts": lambda name: not is_training_state(name) and split_name(name)[1] is not None,
    "other weights": lambda name: not is_training_state(name) and split_name(name)[1] is None,
    "Adam's moments": lambda name: name.startswith(MOMENTS),
    "other training state": lambda name: is_training_state(name) and not name.startswith(MOMENTS),
}


def inspect(path: str, list_tensors: bool = False) -> None:
    """Prints what the checkpoint at `path` (or the newest of that run) says of itself, with a line a tensor if
    `list_tensors`. Raises InputError where there is none.
    """
    with CheckpointReader.open(newest(path)) as reader:
        tensors, shards = reader.manifest.tensors, reader.manifest.shards
        lines = [f"{reader.folder}"]
        for line in describe_header(reader.header):
            lines += wrapped(line, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        lines.append(f"{len(tensors)} tensors in {len(shards)} shards, {megabytes(sum(shards.values()))}")
        lines += [f"{name}: {file.bytes:,} bytes" for name, file in reader.manifest.files.items()]
        kinds = []
        for kind, belongs in KINDS.items():
            members = [entry for name, entry in tensors.items() if belongs(name)]
            if members:
                kinds.append((kind, f"{len(members):,}", megabytes(sum(entry.bytes for entry in members))))
        lines += ["", *text_table((TableColumn("part", "<"), TableColumn("tensors"), TableColumn("size")), kinds)]
        if list_tensors:
            columns = [TableColumn(title, "<") for title in ("tensor", "type", "shape", "cut", "shards")]
            lines += ["", *text_table(columns, [_cells(name, entry) for name, entry in tensors.items()])]
        print("\n".join(lines))


def describe_header(header: CheckpointHeader) -> List[str]:
    """Lines on everything but the tensors."""
    data, scalars = header.data, header.scalars
    model, moe, parallel = (header.config.get(section, {}) for section in ("model", "moe", "parallel"))
    router = moe.get("router") if isinstance(moe.get("router"), dict) else {}
    others = [one for one in moe.get("routers") or [] if isinstance(one, dict)]
    lines = [f"step {header.step}, {header.contents}; format version {VERSION}"]
    if model:
        lines.append(
            f"hidden {model.get('hidden_size')}, {model.get('dense_layers')} dense + {model.get('sparse_layers')} "
            f"sparse layers, {moe.get('num_experts')} experts in {moe.get('num_groups')} groups, router "
            f"{router.get('type')}"
            + "".join(f", {one.get('type')} in {', '.join(map(str, one.get('layers') or []))}" for one in others)
        )
    if parallel:
        lines.append(f"written at expert parallel {parallel.get('expert')}, tensor parallel {parallel.get('tensor')}")
    lines.append(
        f"vocabulary {data.vocab_size}, domains {', '.join(data.domains)}; tokenizer {str(data.tokenizer_sha256)[:12]}"
    )
    if scalars:
        lines.append("numbers: " + ", ".join(f"{name} {value:g}" for name, value in scalars.items()))
    if header.sampler:
        lines.append("sampler: " + ", ".join(f"{name} {str(value)[:12]}" for name, value in header.sampler.items()))
    return [*lines, *(f"origin: {line}" for line in header.origin)]


def _cells(name: str, entry: TensorEntry) -> List[str]:
    cut = f"{len(entry.parts)} on axis {entry.axis}" if len(entry.parts) > 1 else ""
    return [name, entry.dtype, str(list(entry.shape)), cut, ", ".join(part.shard for part in entry.parts)]


def verify(paths: Sequence[str]) -> None:
    """Prints one line a checkpoint, of those that `paths` mean. Raises InputError where one is damaged, after looking
    at all.
    """
    checkpoints = [checkpoint for path in paths for checkpoint in resolve(Path(path))]
    damaged = []
    for checkpoint in checkpoints:
        try:
            with CheckpointReader.open(checkpoint) as reader:
                count, size = sum(1 for _ in reader.verify()), sum(reader.manifest.shards.values())
                files = "".join(f", {name}" for name in reader.manifest.files)
                print(
                    f"{checkpoint}: whole, step {reader.header.step}, {count} tensors, {megabytes(size)}{files}",
                    flush=True,
                )
        except DamagedCheckpoint as error:
            damaged.append(error)
            print(f"{checkpoint}: damaged: {error}", flush=True)
    if damaged:
        raise InputError(f"{len(damaged)} of {len(checkpoints)} checkpoints damaged: {damaged[0]}")


def megabytes(size: int) -> str:
    """Bytes as MB of 10**6, with one digit behind the point."""
    return f"{size / 1e6:,.1f} MB"
