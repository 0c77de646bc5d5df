"""`pangu-sigma ckpt inspect`: what a checkpoint holds, from its manifest alone."""

from typing import Callable, Dict, Iterable, List

from pangu_sigma.checkpoint.format import VERSION, CheckpointHeader, TensorEntry
from pangu_sigma.checkpoint.names import MOMENTS, is_training_state, split_name
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.surgery.rewrite import newest
from pangu_sigma.checkpoint.surgery.text import megabytes

KINDS: Dict[str, Callable[[str], bool]] = {
    "weights of experts": lambda name: not is_training_state(name) and split_name(name)[1] is not None,
    "other weights": lambda name: not is_training_state(name) and split_name(name)[1] is None,
    "Adam's moments": lambda name: name.startswith(MOMENTS),
    "other training state": lambda name: is_training_state(name) and not name.startswith(MOMENTS),
}


def inspect(path: str, list_tensors: bool = False) -> None:
    """Prints what the checkpoint at `path` (or the newest of that run) says of itself. Raises InputError where there is
    none.
    """
    with CheckpointReader.open(newest(path)) as reader:
        print("\n".join([f"{reader.folder}", *describe_header(reader.header), *_describe_tensors(reader)]))
        if list_tensors:
            print("\n".join(_line(name, entry) for name, entry in reader.manifest.tensors.items()))


def describe_header(header: CheckpointHeader) -> List[str]:
    """Lines on everything but the tensors."""
    data, scalars = header.data, header.scalars
    lines = [
        f"step {header.step}, {header.contents}; format version {VERSION}",
        *_describe_model(header.config),
        f"vocabulary {data.vocab_size}, domains {', '.join(data.domains)}; tokenizer {str(data.tokenizer_sha256)[:12]}",
    ]
    if scalars:
        lines.append("numbers: " + ", ".join(f"{name} {value:g}" for name, value in scalars.items()))
    if header.sampler:
        lines.append("sampler: " + ", ".join(f"{name} {str(value)[:12]}" for name, value in header.sampler.items()))
    return [*lines, *(f"origin: {line}" for line in header.origin)]


def _describe_model(config: Dict) -> Iterable[str]:
    model, moe, parallel = config.get("model", {}), config.get("moe", {}), config.get("parallel", {})
    router = moe.get("router") if isinstance(moe.get("router"), dict) else {}
    if model:
        yield (
            f"hidden {model.get('hidden_size')}, {model.get('dense_layers')} dense + {model.get('sparse_layers')} "
            f"sparse layers, {moe.get('num_experts')} experts in {moe.get('num_groups')} groups, router "
            f"{router.get('type')}"
        )
    if parallel:
        yield f"written at expert parallel {parallel.get('expert')}, tensor parallel {parallel.get('tensor')}"


def _describe_tensors(reader: CheckpointReader) -> Iterable[str]:
    tensors = reader.manifest.tensors
    yield f"{len(tensors)} tensors in {len(reader.manifest.shards)} shards, {megabytes(sum(reader.manifest.shards.values()))}"
    for name, file in reader.manifest.files.items():
        yield f"{name}: {file.bytes:,} bytes"
    for kind, belongs in KINDS.items():
        members = [entry for name, entry in tensors.items() if belongs(name)]
        if members:
            yield f"  {kind}: {len(members)} tensors, {megabytes(sum(entry.bytes for entry in members))}"


def _line(name: str, entry: TensorEntry) -> str:
    cut = f" in {len(entry.parts)} parts along axis {entry.axis}" if len(entry.parts) > 1 else ""
    return f"{name}  {entry.dtype} {list(entry.shape)}{cut}  {', '.join(part.shard for part in entry.parts)}"
