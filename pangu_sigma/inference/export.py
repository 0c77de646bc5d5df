"""`pangu-sigma export`: a model for other programs, as MindIR graphs or as one file of weights.

Either way a new folder with the tokenizer in it. MindIR: the prefill and the decode graph of `cells` for one number of
rows and one length, each with all weights, and `generation.json`, which says what goes in and comes out. safetensors:
`model.safetensors` with the checkpoint's weights, each bank of experts one tensor, by global id; and `config.yaml`.
`pangu_sigma.inference.export_dense` writes dense models for programs that know PanGu-alpha.
"""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Union

import numpy as np

import mindspore as ms
from mindspore import Tensor, nn

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.folders import new_checkpoint_folder, resolve
from pangu_sigma.checkpoint.names import is_training_state, split_name
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.shards import PlannedTensor, planned, write_shard
from pangu_sigma.config.load import save_config
from pangu_sigma.config.schema import Config
from pangu_sigma.data.manifest import TOKENIZERS, find_tokenizer
from pangu_sigma.data.pieces import file_name_of
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.inference.cells import Decode, Prefill, empty_caches
from pangu_sigma.inference.generator import Generator
from pangu_sigma.inference.graphs import GraphPair
from pangu_sigma.inference.load import Model, TextCodec, checkpoint_of, load_model, tokenizer_file
from pangu_sigma.runtime.mindir import export_graph, graph_file
from pangu_sigma.runtime.strict_json import dumps

FORMAT, VERSION = "pangu-sigma generation", 1
DESCRIPTION, WEIGHTS = "generation.json", "model.safetensors"
OWN = (DESCRIPTION, WEIGHTS, *TOKENIZERS, "config.yaml", "config.json", "*.ckpt", "prefill*", "decode*")
_INPUTS = {
    "prefill": ("ids", "positions", "last", "domain", "home"),
    "decode": ("ids", "positions", "places", "domain", "home"),
}


def export_mindir(
    config: Config,
    target: Union[str, Path],
    rows: int,
    length: Optional[int],
    tokenizer: Union[str, Path, None] = None,
    local_term: bool = False,
) -> None:
    """Writes the graphs of a checkpoint's model into a new folder.

    Args:
        config: of a run; says which checkpoint. target: the folder.
        rows, length: of the graphs: rows of up to `length` tokens, prompt and output; None: the model's length.
        tokenizer, local_term: see `load_model`.

    Raises InputError: as `load_model`; the target is there already or cannot be made; `length` exceeds the model's.
    """
    target = Path(target)
    check_export_target(target)
    model = load_model(config, tokenizer, local_term)
    most = model.codec.sequence_length
    length = length or most
    if not 2 <= length <= most:
        raise InputError(f"--length is {length}; expected 2 to {most} (model.sequence_length)")

    def fill(folder: Path) -> None:
        prefill, decode = (kind(model.network, model.context, rows, length) for kind in (Prefill, Decode))
        whole, column, row = (Tensor(np.zeros(shape, np.int32)) for shape in ((rows, length), (rows, 1), (rows,)))
        caches = empty_caches(model.network, rows, length)
        export_graph(prefill, [whole, whole, row, row, row], folder / "prefill")
        export_graph(decode, [column, column, column, row, row, *caches], folder / "decode")
        description = _description(model, rows, length, caches)
        (folder / DESCRIPTION).write_text(dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        copy_tokenizer(Path(model.codec.tokenizer_path), folder)

    write_export(target, fill)


def export_safetensors(config: Config, target: Union[str, Path], tokenizer: Union[str, Path, None] = None) -> None:
    """Writes the weights of a checkpoint as they are into the new folder `target`. Memory: one tensor.

    Args:
        config: of a run; says which checkpoint. target: the folder. tokenizer: see `load_model`.

    Raises InputError: as `export_mindir`; a damaged checkpoint.
    """
    target = Path(target)
    check_export_target(target)
    with CheckpointReader.open(resolve(checkpoint_of(config))[-1]) as reader:
        vocabulary = tokenizer_file(reader, config, tokenizer)

        def fill(folder: Path) -> None:
            write_shard(folder / WEIGHTS, _weights(reader))
            save_config(reader.config(), folder / "config.yaml")
            copy_tokenizer(vocabulary, folder)

        write_export(target, fill)


def load_exported(folder: Union[str, Path]) -> Generator:
    """A generator from the MindIR files of `export_mindir` in `folder`, without the network's own code.

    Raises InputError: the folder holds no such files.
    """
    folder = Path(folder)
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder / DESCRIPTION}: cannot be read ({error}); expected a folder of `pangu-sigma export`"
        ) from None
    if not isinstance(description, dict) or (description.get("format"), description.get("version")) != (
        FORMAT,
        VERSION,
    ):
        raise InputError(f"{folder / DESCRIPTION}: not of this release; expected format {FORMAT!r}, version {VERSION}")
    path = str(find_tokenizer(folder) or folder / TOKENIZERS[0])
    codec = TextCodec(
        Tokenizer.load(path),
        path,
        tuple(description["domains"]),
        description["word_table_rows"],
        description["length"],
        description["reset_at_document_end"],
    )
    prefill, decode = (nn.GraphCell(ms.load(str(graph_file(folder / name)))) for name in _INPUTS)
    return Generator(
        codec,
        ExportedGraphs(GraphPair(description["rows"], description["length"], prefill, decode)),
        description["homes"],
    )


class ExportedGraphs:
    """The one pair of graphs that there is; implements `Graphs`."""

    def __init__(self, pair: GraphPair) -> None:
        self.rows = pair.rows
        self._pair = pair

    def pair(self, positions: int) -> GraphPair:
        return self._pair


def check_export_target(target: Path) -> None:
    """Tells what stands in the way of the new folder `target` before a model is read. Raises InputError."""
    try:
        if os.path.lexists(target):
            raise InputError(f"--output {target}: is there already; expected the name of a new folder")
        target.exists()  # complains of names that are too long
        above = next(parent for parent in target.absolute().parents if parent.exists())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"--output {str(target)[:80]}: cannot be made ({reason}); expected the name of a new folder"
        ) from None
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise InputError(f"--output {target}: cannot be made in {above}; expected a folder that can be written to")


def _description(model: Model, rows: int, length: int, caches: List[Tensor]) -> Dict[str, Any]:
    """What a program needs to know to run the graphs."""
    codec = model.codec
    names = [f"{kind} {layer}" for layer in range(len(caches) // 2) for kind in ("key", "value")]
    return {
        "format": FORMAT,
        "version": VERSION,
        "rows": rows,
        "length": length,
        "word_table_rows": codec.vocab_size,
        "words": codec.tokenizer.vocab_size,
        "end_of_text": codec.tokenizer.end_of_text,
        "domains": list(codec.domains),
        "domain_tags": [codec.tokenizer.domain_tags[name] for name in codec.domains],
        "homes": list(model.homes),
        "reset_at_document_end": codec.resets,
        "cache": {"shape": list(caches[0].shape), "dtype": str(caches[0].dtype)},
        "prefill": {"inputs": list(_INPUTS["prefill"]), "outputs": ["logits", *names]},
        "decode": {"inputs": [*_INPUTS["decode"], *names], "outputs": ["logits", *names]},
        "checkpoint": str(model.checkpoint),
        "step": model.step,
    }


def _weights(reader: CheckpointReader) -> List[PlannedTensor]:
    """Of what evaluation needs, each tensor of the network; parts of banks put together."""
    experts: Dict[str, List[str]] = {}
    found = [
        planned(name, np.array(value, np.float32))
        for name, value in reader.header.scalars.items()
        if not is_training_state(name)
    ]
    for name in reader.names():
        parameter, expert = split_name(name)
        if is_training_state(name):
            continue
        if expert is not None:
            experts.setdefault(parameter, []).append(name)
        else:
            found.append(
                PlannedTensor(name, reader.entry(name).shape, reader.entry(name).dtype, partial(reader.read, name))
            )
    for parameter, names in experts.items():
        names.sort(key=lambda name: split_name(name)[1] or 0)
        entry = reader.entry(names[0])
        found.append(
            PlannedTensor(parameter, (len(names), *entry.shape), entry.dtype, partial(_stacked, reader, names))
        )
    return found


def _stacked(reader: CheckpointReader, names: List[str]) -> np.ndarray:
    """One tensor of the parts of these names, read when it is written."""
    return np.stack([reader.read(name) for name in names])


def copy_tokenizer(path: Path, folder: Path) -> None:
    """Puts the tokenizer's file at `path` into `folder`, under the usual name of its kind."""
    content = path.read_bytes()
    (folder / file_name_of(content)).write_bytes(content)


def write_export(target: Path, fill: Callable[[Path], None]) -> None:
    """The new folder `target` with what `fill` puts into it, which appears whole or not at all. Raises InputError."""
    if os.path.lexists(target):
        raise InputError(f"--output {target}: is there already; expected the name of a new folder")
    with new_checkpoint_folder(target, OWN) as folder:
        fill(folder)
