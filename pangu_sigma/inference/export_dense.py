"""`pangu-sigma export` of a dense model, or of the dense part of one with experts, for programs that know PanGu-alpha.

- `hf-pangu-alpha`: the layout of the public PyTorch ports on the Hugging Face Hub
  (`pangu_sigma.checkpoint.surgery.hugging_face` says which): `model.safetensors`, `config.json`, the tokenizer's file.
  The ports' own two Python files, which this project does not hold, are copied beside them to load it by
  `AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)`.
- `mindformers-pangu-alpha`: one `.ckpt` file by the names and layouts of MindFormers' PanGu-alpha
  (`pangu_sigma.checkpoint.surgery.dense` says which). MindFormers documents no names; these are what its public code
  gives its parameters.

Both are read back by `ckpt inherit`. Experts have no place in either: `dense_part` leaves their layers' feed-forward
networks out, and the file is not a whole model then. A shared expert has one, if it is the only one of its layer: it
is of a dense network's width, and stands there in place of all that the layer has.
"""

from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np

from mindspore import Tensor, save_checkpoint

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.folders import resolve
from pangu_sigma.checkpoint.names import is_training_state
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.shards import PlannedTensor, planned, write_shard
from pangu_sigma.checkpoint.surgery import dense, hugging_face
from pangu_sigma.config.derived import num_blocks
from pangu_sigma.config.load import save_config
from pangu_sigma.config.schema import Config
from pangu_sigma.inference.export import check_export_target, copy_tokenizer, write_export
from pangu_sigma.inference.load import checkpoint_of, tokenizer_file
from pangu_sigma.runtime.messages import log
from pangu_sigma.runtime.strict_json import dumps

MINDFORMERS_FILE = "pangu_alpha.ckpt"
_MASKED = -1e4  # what masked scores become in the ports
_HEADS, _CONFIG = "transformer.h.", "config.json"
_SHARED, _DENSE = ".feed_forward.shared_experts.", ".feed_forward."


def export_hf_pangu_alpha(
    config: Config, target: Union[str, Path], tokenizer: Union[str, Path, None] = None, dense_part: bool = False
) -> None:
    """Writes a checkpoint's model in the layout of the public PyTorch ports. Memory: one tensor, or the word table.

    Args:
        config: of a run; says which checkpoint. target: the new folder. tokenizer: see `load_model`.
        dense_part: of a model with experts, what all experts share, and a shared expert that is alone.

    Raises InputError: as `export_safetensors`; a model with experts, without `dense_part`; word slots by domain; a
    final norm that the ports do not have.
    """
    target = Path(target)
    check_export_target(target)
    with CheckpointReader.open(resolve(checkpoint_of(config))[-1]) as reader:
        own, names = reader.config(), _dense_names(reader, "hf-pangu-alpha", dense_part)
        if own.model.final_norm != "before_query":
            raise InputError(
                f"{reader.folder}: model.final_norm is {own.model.final_norm}, but the ports of --format "
                "hf-pangu-alpha have theirs before the query layer; expected before_query, or --format "
                "mindformers-pangu-alpha"
            )
        vocabulary = tokenizer_file(reader, config, tokenizer)

        def fill(folder: Path) -> None:
            write_shard(folder / hugging_face.SAFETENSORS, _hugging_face_tensors(reader, own, names), {"format": "pt"})
            said = dumps(_hugging_face_config(own, reader), indent=2, ensure_ascii=False)
            (folder / _CONFIG).write_text(said + "\n", encoding="utf-8")
            copy_tokenizer(vocabulary, folder)

        write_export(target, fill)


def export_mindformers(
    config: Config, target: Union[str, Path], tokenizer: Union[str, Path, None] = None, dense_part: bool = False
) -> None:
    """Writes a checkpoint's model as MindFormers' PanGu-alpha names and lays out its parameters. Memory: the model.

    Args:
        config, target, tokenizer, dense_part: see `export_hf_pangu_alpha`.

    Raises InputError: as `export_hf_pangu_alpha`, but that the final norm may stand at either place.
    """
    target = Path(target)
    check_export_target(target)
    with CheckpointReader.open(resolve(checkpoint_of(config))[-1]) as reader:
        own, names = reader.config(), _dense_names(reader, "mindformers-pangu-alpha", dense_part)
        vocabulary = tokenizer_file(reader, config, tokenizer)

        def fill(folder: Path) -> None:
            save_checkpoint(_mindformers_tensors(reader, own, names), str(folder / MINDFORMERS_FILE))
            save_config(own, folder / "config.yaml")
            copy_tokenizer(vocabulary, folder)

        write_export(target, fill)


def _dense_names(reader: CheckpointReader, form: str, dense_part: bool) -> Dict[str, str]:
    """What of a checkpoint has a place in a dense PanGu-alpha: the name that it has in a dense model -> its own. Says
    on the way what is left out.
    """
    model, domains = reader.config().model, len(reader.header.data.domains)
    if model.domain_embeddings and domains > 1:
        raise InputError(
            f"{reader.folder}: has a word table for each of {domains} domains (model.domain_embeddings), and --format "
            f"{form} has place for one; expected the model of one domain, as `ckpt extract --domain D` makes it"
        )
    layers, alone = num_blocks(reader.config()), reader.config().moe.shared_experts == 1
    names = [name for name in reader.names() if not is_training_state(name)]
    as_dense = {name.replace(_SHARED, _DENSE) if alone else name: name for name in names}
    kept = {name: own for name, own in as_dense.items() if hugging_face.their_name(name, layers) is not None}
    sparse = sorted({name.split(".feed_forward.")[0] for name in names if ".experts." in name})
    if sparse and not dense_part:
        raise InputError(
            f"{reader.folder}: {', '.join(sparse)} have experts, for which --format {form} has no place; expected a "
            "dense model (model.sparse_layers 0), or --dense-part for what all experts share"
        )
    if dense_part and not sparse:
        raise InputError(
            f"--dense-part: {reader.folder} has no experts to leave out; expected it for a model with some"
        )
    if sparse and alone:
        log.warning("of %s the shared expert alone is written: the routed ones are left out", ", ".join(sparse))
    elif sparse:
        log.warning("the feed-forward networks of %s have experts and are left out", ", ".join(sparse))
    return kept


def _hugging_face_tensors(reader: CheckpointReader, config: Config, names: Dict[str, str]) -> List[PlannedTensor]:
    layers, found = num_blocks(config), []
    for name, own in names.items():
        theirs, entry = hugging_face.their_name(name, layers), reader.entry(own)
        assert theirs is not None, name
        found.append(PlannedTensor(theirs, entry.shape, entry.dtype, partial(reader.read, own)))
        if name == "embedding.word":
            found.append(PlannedTensor(hugging_face.HEAD, entry.shape, entry.dtype, partial(reader.read, name)))
    length, width = config.model.sequence_length, config.model.hidden_size
    causal = np.tril(np.ones((length, length), np.uint8)).reshape(1, 1, length, length)  # (1, 1, S, S) <- (S, S)
    for layer in range(layers + 1):
        attention = f"{_HEADS}{layer}."
        found += [
            planned(attention + hugging_face.KEY_BIAS, np.zeros(width, np.float32)),
            planned(attention + hugging_face.CONSTANTS[0], causal),
            planned(attention + hugging_face.CONSTANTS[1], np.array(_MASKED, np.float32)),
        ]
    return found


def _hugging_face_config(config: Config, reader: CheckpointReader) -> Dict[str, Any]:
    """What the ports' `config.json` says. Their code gives the other keys their values."""
    model = config.model
    activation = next(theirs for theirs, ours in hugging_face.ACTIVATIONS.items() if ours == model.activation)
    return {
        "architectures": ["GPTPanguForCausalLM"],
        "model_type": "gpt_pangu",
        "auto_map": {
            "AutoConfig": "configuration_gptpangu.GPTPanguConfig",
            "AutoModelForCausalLM": "modeling_gptpangu.GPTPanguForCausalLM",
        },
        "vocab_size": reader.header.data.vocab_size,
        "max_position_embeddings": model.sequence_length,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size or 4 * model.hidden_size,
        "num_layers": num_blocks(config) + 1,
        "num_heads": model.num_heads,
        "activation_function": activation,
        "embd_pdrop": model.embedding_dropout,
        "attn_pdrop": model.attention_dropout,
        "resid_pdrop": model.hidden_dropout,
        "layer_norm_epsilon": model.layer_norm_epsilon,
        "initializer_range": model.init_std,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def _mindformers_tensors(reader: CheckpointReader, config: Config, names: Dict[str, str]) -> List[Dict[str, Any]]:
    found: List[Tuple[str, np.ndarray]] = []
    for name, own in names.items():
        theirs, transposed = _mindformers_name(name)
        value = reader.read(own)
        found.append((theirs, np.ascontiguousarray(value.T) if transposed else value))
    blocks = [f"backbone.blocks.{layer}." for layer in range(num_blocks(config))]
    for block in [*blocks, "backbone.top_query_layer."]:
        found.append((block + dense.WITHOUT_EFFECT, np.zeros(config.model.hidden_size, np.float32)))
    return [{"name": name, "data": Tensor(value)} for name, value in found]


def _mindformers_name(name: str) -> Tuple[str, bool]:
    """MindFormers' name of a parameter, and whether it stores the transpose."""
    if name in dense.TABLES:
        return dense.TABLES[name][0], False
    block, _, inner = name.partition(".")
    number: Optional[str] = None
    if block == "blocks":
        number, _, inner = inner.partition(".")
    theirs, transposed = dense.BLOCK[inner]
    return f"backbone.{'top_query_layer' if number is None else f'blocks.{number}'}.{theirs}", transposed
