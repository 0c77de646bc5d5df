"""The network of the public PyTorch ports of PanGu-alpha (`GPTPanguForCausalLM`), from the description of what they
compute: in NumPy, and, where PyTorch is installed, as modules of the ports' names.
"""

from typing import Any, Dict, Mapping

import numpy as np
from scipy import special

from helpers.numpy_model import ACTIVATIONS

THEIRS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "quick_gelu": "fast_gelu", "relu": "relu"}


def port_logits(state: Mapping[str, np.ndarray], config: Mapping[str, Any], ids: np.ndarray) -> np.ndarray:
    """<float64>[S, V] of one row of ids, <int>[S]; `state` and `config` as the files hold them."""
    p = {name: value.astype(np.float64) for name, value in state.items()}
    heads, last = config["num_heads"], config["num_layers"] - 1
    act, epsilon = ACTIVATIONS[THEIRS[config["activation_function"]]], config["layer_norm_epsilon"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def attend(x: np.ndarray, asks: np.ndarray, name: str) -> np.ndarray:
        q, k, v = linear(asks, f"{name}.q_proj"), linear(x, f"{name}.k_proj"), linear(x, f"{name}.v_proj")
        seen = p[f"{name}.bias"][0, 0, : len(x), : len(x)] > 0
        outputs = []
        for query, key, value in zip(*(np.split(part, heads, axis=1) for part in (q, k, v))):
            scores = query @ key.T / np.sqrt(key.shape[1])
            outputs.append(special.softmax(np.where(seen, scores, p[f"{name}.masked_bias"]), axis=-1) @ value)
        return linear(np.concatenate(outputs, axis=1), f"{name}.c_proj")

    x = p["transformer.wte.weight"][ids] + p["transformer.wpe.weight"][: len(ids)]
    for layer in range(last + 1):
        name = f"transformer.h.{layer}"
        x = norm(x, "transformer.ln_f") if layer == last else x
        normed = norm(x, f"{name}.ln_1")
        asks = p["transformer.wqe.weight"][: len(ids)] if layer == last else normed
        x = x + attend(normed, asks, f"{name}.attn")
        x = x + linear(act(linear(norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")), f"{name}.mlp.c_proj")
    return x @ p["lm_head.weight"].T


def torch_port(torch: Any, config: Mapping[str, Any]) -> Any:
    """The same as PyTorch modules, whose `state_dict` has the ports' names, buffers included.

    Args:
        torch: the library. config: as `config.json` holds it.
    """
    nn, functional = torch.nn, torch.nn.functional
    width, heads, length = config["hidden_size"], config["num_heads"], config["max_position_embeddings"]
    act = {
        "gelu": functional.gelu,
        "gelu_new": lambda x: 0.5 * x * (1.0 + torch.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "relu": functional.relu,
    }[config["activation_function"]]

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("bias", torch.zeros(1, 1, length, length, dtype=torch.uint8))
            self.register_buffer("masked_bias", torch.tensor(0.0))
            for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
                setattr(self, name, nn.Linear(width, width))

        def forward(self, x: Any, asks: Any) -> Any:
            rows, places = x.shape[:2]
            parts = (self.q_proj(asks), self.k_proj(x), self.v_proj(x))
            q, k, v = (part.view(len(part), places, heads, -1).transpose(1, 2) for part in parts)
            scores = q @ k.transpose(-1, -2) / np.sqrt(width / heads)
            scores = torch.where(self.bias[:, :, :places, :places].bool(), scores, self.masked_bias)
            return self.c_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, places, width))

    class FeedForward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_fc = nn.Linear(width, config["intermediate_size"])
            self.c_proj = nn.Linear(config["intermediate_size"], width)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = (nn.LayerNorm(width, eps=config["layer_norm_epsilon"]) for _ in range(2))
            self.attn, self.mlp = Attention(), FeedForward()

        def forward(self, x: Any, asks: Any) -> Any:
            normed = self.ln_1(x)
            x = x + self.attn(normed, normed if asks is None else asks)
            return x + self.mlp.c_proj(act(self.mlp.c_fc(self.ln_2(x))))

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte = nn.Embedding(config["vocab_size"], width)
            self.wpe, self.wqe = nn.Embedding(length, width), nn.Embedding(length, width)
            self.h = nn.ModuleList([Block() for _ in range(config["num_layers"])])
            self.ln_f = nn.LayerNorm(width, eps=config["layer_norm_epsilon"])

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = Backbone()
            self.lm_head = nn.Linear(width, config["vocab_size"], bias=False)

        def forward(self, ids: Any) -> Any:
            body, places = self.transformer, torch.arange(ids.shape[1])[None]
            x = body.wte(ids) + body.wpe(places)
            for block in body.h[:-1]:
                x = block(x, None)
            return self.lm_head(body.h[-1](body.ln_f(x), body.wqe(places)))

    return Port().eval()


def as_arrays(state: Mapping[str, Any]) -> Dict[str, np.ndarray]:
    """A `state_dict` as arrays."""
    return {name: value.numpy() for name, value in state.items()}
