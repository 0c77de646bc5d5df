"""Dense models in the layout of the public PyTorch ports of PanGu-alpha on the Hugging Face Hub.

Names, shapes and the order of computation are those of the ports' public code, `GPTPanguForCausalLM`:
`sunzeyeah/RLHF`, src/resources/models/pangu-2.6B/modeling_gptpangu.py (PyTorch; it names `imone/pangu_2_6B` as what it
is from), configuration_gptpangu.py and config.json beside it; `mindspore-lab/mindnlp`, models/gpt_pangu, is the same in
MindSpore. Word, position and query tables are `wte`, `wpe` and `wqe`; the last of `num_layers` blocks is the query
layer, before which `ln_f` stands; matrices are (out, in), as here. `lm_head` is the word table once more. Of each
block's attention the files may hold two constants, the causal mask (`attn.bias`) and what masked scores become.
"""

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import numpy as np
from safetensors import SafetensorError, safe_open

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import parse_json, read_text
from pangu_sigma.checkpoint.surgery.dense import DenseModel, require_same
from pangu_sigma.config.schema import Config
from pangu_sigma.data.manifest import describe_file

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
# Our name within a block -> theirs.
BLOCK = {
    "attention_norm.gamma": "ln_1.weight",
    "attention_norm.beta": "ln_1.bias",
    "attention.query.weight": "attn.q_proj.weight",
    "attention.query.bias": "attn.q_proj.bias",
    "attention.key.weight": "attn.k_proj.weight",
    "attention.value.weight": "attn.v_proj.weight",
    "attention.value.bias": "attn.v_proj.bias",
    "attention.project.weight": "attn.c_proj.weight",
    "attention.project.bias": "attn.c_proj.bias",
    "ffn_norm.gamma": "ln_2.weight",
    "ffn_norm.beta": "ln_2.bias",
    "feed_forward.w_in.weight": "mlp.c_fc.weight",
    "feed_forward.w_in.bias": "mlp.c_fc.bias",
    "feed_forward.w_out.weight": "mlp.c_proj.weight",
    "feed_forward.w_out.bias": "mlp.c_proj.bias",
}
# A bias of the keys adds the same to all scores of a query, which softmax does not see: the network here has none.
KEY_BIAS = "attn.k_proj.bias"
CONSTANTS = ("attn.bias", "attn.masked_bias")
TABLES = {
    "embedding.word": "wte.weight",
    "embedding.position": "wpe.weight",
    "query_layer.top_query": "wqe.weight",
    "final_norm.gamma": "ln_f.weight",
    "final_norm.beta": "ln_f.bias",
}
HEAD = "lm_head.weight"
PREFIX = "transformer."
# Names of `transformers.activations` -> ours; the first of those that are ours is what an export says.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "fast_gelu",
    "relu": "relu",
}
_EXPECTED = "a folder of a public PanGu-alpha port (config.json, and model.safetensors or pytorch_model.bin)"


def their_name(name: str, layers: int) -> Optional[str]:
    """What a parameter of ours is called there, None: nothing.

    Args:
        name: ours. layers: number of blocks below the query layer.
    """
    if name in TABLES:
        return PREFIX + TABLES[name]
    block, _, inner = name.partition(".")
    if block == "blocks":
        block, _, inner = inner.partition(".")
    elif block == "query_layer":
        block = str(layers)
    return f"{PREFIX}h.{block}.{BLOCK[inner]}" if inner in BLOCK and block.isdecimal() else None


def is_hugging_face_folder(path: Path) -> bool:
    """Whether a folder is laid out as models on the Hugging Face Hub are."""
    return (path / "config.json").is_file()


class HuggingFaceModel(DenseModel):
    """A folder with `config.json` and weights, whole or in shards: safetensors, or PyTorch's own format, which needs
    PyTorch to be read, and memory for all of it.

    Args:
        folder: of the model.

    Raises InputError: a file is missing or malformed, or the model is none of the ports' kind.
    """

    is_foreign = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = self._read_object("config.json")
        if "pangu" not in f"{self._config.get('model_type')} {self._config.get('architectures')}".lower():
            raise InputError(
                f"{folder / 'config.json'}: its model_type is {self._config.get('model_type')}; expected {_EXPECTED}"
            )
        self._layers = self._number("num_layers") - 1
        self._pickled: Dict[Path, Mapping[str, Any]] = {}  # the file that was read last
        self._files = self._locate()
        self._found = self._find()
        self.origin = f"inherited from {folder}, a PanGu-alpha of {self._layers + 1} layers in Hugging Face's layout"
        names = ("tokenizer.model", "tokenizer.json", "vocab.model")  # the last one is the ports'
        self.tokenizer_file = next((folder / name for name in names if (folder / name).is_file()), None)
        if self.tokenizer_file is not None:
            self.tokenizer_sha256 = describe_file(self.tokenizer_file).sha256

    def names(self) -> List[str]:
        return list(self._found)

    def read(self, name: str) -> np.ndarray:
        if name not in self._found:
            raise InputError(
                f"{self._folder}: nothing for {name}; expected all parameters of a PanGu-alpha of {self._layers + 1} "
                "layers"
            )
        return self._tensor(self._found[name])

    def check(self, config: Config) -> Optional[str]:
        said = self._config.get("activation_function", "gelu")
        activation = ACTIVATIONS.get(str(said))
        if activation is None:
            raise InputError(
                f"{self._folder / 'config.json'}: activation_function is {said}; expected one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        if self._config.get("scale_attn_weights", True) is not True:
            raise InputError(f"{self._folder / 'config.json'}: scale_attn_weights is not true; expected true")
        expected = {
            "num_heads": self._number("num_heads"),
            "activation": activation,
            "layer_norm_epsilon": float(self._config.get("layer_norm_epsilon", 1e-5)),
            "final_norm": "before_query",
        }
        for key, value in expected.items():
            require_same(key, getattr(config.model, key), value, str(self._folder))
        if HEAD in self._files and not np.array_equal(self._tensor(HEAD), self.read("embedding.word")):
            raise InputError(
                f"{self._folder}: {HEAD} differs from {PREFIX}wte.weight; expected the same numbers, as the head here "
                "is tied to the word table"
            )
        return None

    def _read_object(self, name: str) -> Dict[str, Any]:
        content = parse_json(read_text(self._folder / name, _EXPECTED), str(self._folder / name), _EXPECTED)
        if not isinstance(content, dict):
            raise InputError(f"{self._folder / name}: holds no object; expected {_EXPECTED}")
        return content

    def _number(self, key: str) -> int:
        value = self._config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{self._folder / 'config.json'}: {key} is {value}; expected a whole number from 1")
        return value

    def _locate(self) -> Dict[str, Path]:
        """The file of each stored tensor."""
        for name in (SAFETENSORS, PICKLED):
            path = self._folder / name
            if path.is_file() and name == PICKLED:
                self._pickled = {path: _load_pickled(path)}
                return dict.fromkeys(self._pickled[path], path)
            if path.is_file():
                try:
                    with safe_open(path, framework="numpy") as stored:
                        return dict.fromkeys(stored.keys(), path)
                except (SafetensorError, OSError) as error:
                    raise _unreadable(path, error) from None
            if (self._folder / f"{name}.index.json").is_file():
                shards = self._read_object(f"{name}.index.json").get("weight_map")
                if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                    raise InputError(f"{self._folder / name}.index.json: holds no weight_map; expected {_EXPECTED}")
                return {tensor: self._folder / shard for tensor, shard in shards.items()}
        raise InputError(f"{self._folder}: holds no weights; expected {_EXPECTED}")

    def _find(self) -> Dict[str, str]:
        """Our name -> the stored one. Raises InputError for a tensor that has no counterpart here."""
        ours = {PREFIX + theirs: name for name, theirs in TABLES.items()}
        found, ignored = {}, {HEAD}
        for layer in range(self._layers + 1):
            block = "query_layer" if layer == self._layers else f"blocks.{layer}"
            ours.update({f"{PREFIX}h.{layer}.{theirs}": f"{block}.{name}" for name, theirs in BLOCK.items()})
            ignored.update(f"{PREFIX}h.{layer}.{name}" for name in (KEY_BIAS, *CONSTANTS))
        for stored in self._files:
            name = stored if stored.startswith((PREFIX, "lm_head.")) else PREFIX + stored  # of the backbone alone
            if name in ours:
                found[ours[name]] = stored
            elif name not in ignored:
                raise InputError(
                    f"{self._folder}: {stored} is no parameter of a PanGu-alpha of {self._layers + 1} layers; expected "
                    f"names such as {PREFIX}h.0.attn.q_proj.weight"
                )
        return found

    def _tensor(self, stored: str) -> np.ndarray:
        """<float32>, as it is stored."""
        path = self._files[stored]
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="numpy") as tensors:
                    return np.asarray(tensors.get_tensor(stored), np.float32)
        except (SafetensorError, OSError, TypeError, KeyError, AttributeError) as error:
            raise _unreadable(path, error) from None
        if path not in self._pickled:
            self._pickled = {path: _load_pickled(path)}  # one shard at a time
        if stored not in self._pickled[path]:
            raise InputError(f"{path}: holds no {stored}; expected it, as its index says")
        return np.asarray(self._pickled[path][stored].float().numpy(), np.float32)


def _load_pickled(path: Path) -> Mapping[str, Any]:
    """The tensors of a file that `torch.save` wrote; nothing in it is executed."""
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path}: is in PyTorch's own format, and PyTorch is not installed; expected it, or {SAFETENSORS}, as "
            "save_pretrained(FOLDER, safe_serialization=True) writes it"
        ) from None
    try:
        found: Mapping[str, Any] = torch.load(str(path), map_location="cpu", weights_only=True)
        if not isinstance(found, Mapping) or not all(hasattr(tensor, "float") for tensor in found.values()):
            raise ValueError("it holds no tensors by name")
    except Exception as error:  # what unpickling raises is not documented
        raise _unreadable(path, error) from None
    return found


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"{path}: cannot be read ({reason}); expected weights in float32 or float16")
