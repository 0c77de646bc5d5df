"""PanGu-Sigma and its objective in NumPy, float64, written from the description of the network and not from its code.

Shape legend: B rows, S positions, T = B * S tokens, d hidden size, H heads, V words, E experts.
"""

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
from scipy import special

from locmoe_ops.reference.layer import moe_layer
from locmoe_ops.reference.spec import LayerParameters, LayerResult, LayerSpec, RankTokens, SharedWeights

Arrays = Mapping[str, np.ndarray]

ACTIVATIONS = {
    "gelu": lambda x: x * special.ndtr(x),
    "gelu_tanh": lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
    "fast_gelu": lambda x: x * special.expit(1.702 * x),
    "relu": lambda x: np.maximum(x, 0.0),
}


class NumpyOptions(NamedTuple):
    """The network's static choices; `spec` describes its sparse layers (None where there are none)."""

    dense_layers: int
    sparse_layers: int
    heads: int
    vocab_size: int
    epsilon: float
    activation: str
    sparse_query_layer: bool
    domain_embeddings: bool
    spec: Optional[LayerSpec]
    norm_after_query: bool = False


class Forward(NamedTuple):
    logits: np.ndarray  # (T,V)
    layers: List[LayerResult]  # of the sparse layers, bottom up


class NumpyModel:
    """The network for one simulated rank.

    Args:
        parameters: by the network's own names; anything not float is left alone.
        factors: dropout by name of its cell: what elements are multiplied by, in any shape that has as many elements.
    """

    def __init__(self, options: NumpyOptions, parameters: Arrays, factors: Optional[Arrays] = None) -> None:
        self.options = options
        self.parameters = {name: p.astype(np.float64) if p.dtype.kind == "f" else p for name, p in parameters.items()}
        self.factors = factors or {}

    def moved(self, name: str, step: np.ndarray) -> "NumpyModel":
        """The same network with one parameter displaced."""
        return NumpyModel(self.options, {**self.parameters, name: self.parameters[name] + step}, self.factors)

    def forward(self, batch: Arrays) -> Forward:
        options, rows = self.options, batch["ids"].shape[0]
        x = self._drop(self._embed(batch), "embedding.dropout")
        layers: List[LayerResult] = []
        for i in range(options.dense_layers + options.sparse_layers):
            name = f"blocks.{i}"
            normed = self._norm(x, f"{name}.attention_norm")
            query, key, value = (self._linear(normed, f"{name}.attention.{part}") for part in ("query", "key", "value"))
            x = x + self._attend(query, key, value, batch["documents"], name)
            x = x + self._feed_forward(x, batch, name, i >= options.dense_layers, layers)
        x = x if options.norm_after_query else self._norm(x, "final_norm")
        name, positions = "query_layer", batch["positions"].reshape(-1)
        query = self._linear(self.parameters["query_layer.top_query"][positions], f"{name}.attention.query")
        normed = self._norm(x, f"{name}.attention_norm")
        key, value = (self._linear(normed, f"{name}.attention.{part}") for part in ("key", "value"))
        x = x + self._attend(query, key, value, batch["documents"], name)
        x = x + self._feed_forward(x, batch, name, options.sparse_query_layer, layers)
        x = self._norm(x, "final_norm") if options.norm_after_query else x
        logits = [x_row @ self._words(domain).T for x_row, domain in zip(np.split(x, rows), batch["domain"])]
        return Forward(np.concatenate(logits), layers)

    def objective(self, batch: Arrays, nominal_tokens: float, loss_scale: float = 1.0) -> float:
        """The scaled objective of one micro-batch; see `losses` for its parts."""
        parts = self.losses(batch)
        total = parts["task"] + (parts["aux"] + parts["locality"])
        return float(total * loss_scale / nominal_tokens)

    def losses(self, batch: Arrays) -> Dict[str, Any]:
        """tokens, task, aux and locality (both times tokens), assigned [M, E], kept, kept_local [M]; of locmoe
        undecided [M]; of k > 1 and experts on several nodes tokens_by_nodes [M, Q].
        """
        logits, layers = self.forward(batch)
        mask, targets = batch["loss_mask"].reshape(-1).astype(np.float64), batch["targets"].reshape(-1)
        tokens = mask.sum()
        kept = [layer.kept[0].sum() for layer in layers]
        undecided = [layer.stats.undecided_fraction * layer.expert[0].size for layer in layers]
        by_nodes = np.array([layer.stats.tokens_by_nodes for layer in layers])
        return {
            "tokens": tokens,
            "task": np.sum(mask * token_losses(logits, targets)),
            "aux": tokens * sum(layer.aux_loss for layer in layers),
            "locality": tokens * sum(layer.locality_loss for layer in layers),
            "assigned": np.array([layer.stats.tokens_per_expert for layer in layers]),
            "kept": np.array(kept),
            "kept_local": np.array([layer.stats.local_fraction * k for layer, k in zip(layers, kept)]),
            **({"undecided": np.array(undecided)} if layers and self.options.spec.router == "locmoe" else {}),
            **({"tokens_by_nodes": by_nodes} if by_nodes.size else {}),
        }

    def _words(self, domain: int) -> np.ndarray:
        """(V,d): the word table that a row of this domain reads and is scored with."""
        slot = domain if self.options.domain_embeddings else 0
        first = slot * self.options.vocab_size
        return self.parameters["embedding.word"][first : first + self.options.vocab_size]

    def _embed(self, batch: Arrays) -> np.ndarray:
        rows = [
            self._words(domain)[ids] + self.parameters["embedding.position"][positions]
            for ids, positions, domain in zip(batch["ids"], batch["positions"], batch["domain"])
        ]
        return np.concatenate(rows)

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + self.options.epsilon)
        return scaled * self.parameters[f"{name}.gamma"] + self.parameters[f"{name}.beta"]

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.parameters[f"{name}.weight"].T + self.parameters.get(f"{name}.bias", 0.0)

    def _drop(self, x: np.ndarray, name: str) -> np.ndarray:
        return x * self.factors[name].reshape(x.shape) if name in self.factors else x

    def _attend(
        self, query: np.ndarray, key: np.ndarray, value: np.ndarray, documents: np.ndarray, name: str
    ) -> np.ndarray:
        """(T,d): what a block's attention adds to the stream, row by row and head by head."""
        rows, length = documents.shape
        heads, width = self.options.heads, query.shape[1] // self.options.heads
        dropped = self._drop(np.ones((rows, heads, length, length)), f"{name}.attention.core.dropout")
        mixed = np.empty_like(query)
        for row in range(rows):
            tokens, allowed = slice(row * length, (row + 1) * length), visible(documents[row])
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores = query[tokens, part] @ key[tokens, part].T / np.sqrt(width)
                probabilities = special.softmax(np.where(allowed, scores, -np.inf), axis=1)
                mixed[tokens, part] = (probabilities * dropped[row, head]) @ value[tokens, part]
        return self._drop(self._linear(mixed, f"{name}.attention.project"), f"{name}.attention_dropout")

    def _feed_forward(
        self, x: np.ndarray, batch: Arrays, name: str, sparse: bool, layers: List[LayerResult]
    ) -> np.ndarray:
        """(T,d): what a block's feed-forward network adds to the stream; a sparse one is noted in `layers`."""
        x = self._norm(x, f"{name}.ffn_norm")
        if sparse:
            assert self.options.spec is not None
            layers.append(moe_layer(self.options.spec, self._experts(f"{name}.feed_forward"), [_rank_tokens(x, batch)]))
            y = layers[-1].outputs[0]
        else:
            inner = ACTIVATIONS[self.options.activation](self._linear(x, f"{name}.feed_forward.w_in"))
            y = self._linear(inner, f"{name}.feed_forward.w_out")
        return self._drop(y, f"{name}.ffn_dropout")

    def _experts(self, name: str) -> LayerParameters:
        """The layer's weights in the order of global expert ids; buffers hold them in the order of their places."""
        spec, parameters = self.options.spec, self.parameters
        assert spec is not None
        place = np.array([_place(expert, spec) for expert in range(spec.num_experts)])
        return LayerParameters(
            w1=parameters[f"{name}.experts.w_in"][place],
            b1=parameters[f"{name}.experts.b_in"][place, 0],
            w2=parameters[f"{name}.experts.w_out"][place],
            b2=parameters[f"{name}.experts.b_out"][place, 0],
            gate=parameters.get(f"{name}.routing.router.gate.weight"),
            table=parameters.get(f"{name}.routing.router.table"),
            shared=self._shared(f"{name}.shared_experts"),
        )

    def _shared(self, name: str) -> Optional[SharedWeights]:
        """The layer's shared experts, seen as one; None where there are none."""
        own = {part: self.parameters.get(f"{name}.{part}") for part in ("w_in.weight", "w_in.bias", "w_out.weight")}
        if own["w_in.weight"] is None:
            return None
        return SharedWeights(
            own["w_in.weight"].T[None],
            own["w_in.bias"][None],
            own["w_out.weight"].T[None],
            self.parameters[f"{name}.w_out.bias"][None],
        )


def visible(documents: np.ndarray) -> np.ndarray:
    """bool (S,S): whether position i may look at position j: not at later ones, not across documents (S,)."""
    length = len(documents)
    return np.array([[j <= i and documents[i] == documents[j] for j in range(length)] for i in range(length)])


def token_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(T,) float64: -log softmax(logits)[target] in nats."""
    logits = logits.astype(np.float64)
    return special.logsumexp(logits, axis=1) - logits[np.arange(len(targets)), targets]


def _place(expert: int, spec: LayerSpec) -> int:
    group, member = divmod(expert, spec.experts_per_group)
    return member * spec.num_groups + group if spec.placement.kind == "interleaved" else expert


def _rank_tokens(x: np.ndarray, batch: Arrays) -> RankTokens:
    length = batch["ids"].shape[1]
    return RankTokens(x, batch["ids"].reshape(-1), np.repeat(batch["domain"], length), np.repeat(batch["home"], length))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest expected magnitude."""
    return float(np.max(np.abs(np.asarray(found, np.float64) - expected)) / np.max(np.abs(expected)))


def split_sums(sums: Dict[str, Any]) -> Tuple[Dict[str, float], Dict[str, np.ndarray]]:
    """Floating-point sums, which agree to rounding, and counts, which agree exactly."""
    counted = ("tokens", "assigned", "kept", "kept_local", "undecided", "tokens_by_nodes")
    return {k: v for k, v in sums.items() if k not in counted}, {k: np.asarray(sums[k]) for k in counted if k in sums}
