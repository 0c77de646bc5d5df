"""Small networks with random weights, the batches they read, and the same network in NumPy."""

from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Dict, List, Mapping, Optional, Tuple

import numpy as np

from mindspore import ParameterTuple, Tensor, nn, ops

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.collectives.interface import (
    AsyncAllToAll,
    BytesSent,
    Collectives,
    CommunicationTimes,
    RankGroup,
    UnevenRows,
)
from locmoe_ops.reference.spec import LayerSpec
from locmoe_ops.tensor_parallel import TensorGroup
from locmoe_ops.topology import ExpertPlacement, Topology
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.inputs import BATCH_FIELDS, unpack_batch
from pangu_sigma.model.objective import Objective
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.model.sparse import SparseContext

VOCABULARY, DOMAINS = 29, 2
DOCUMENTS = ((5, 7), (12,), (1, 3, 8))  # lengths of the documents in each row
SMALL = {
    "hidden_size": 16,
    "num_heads": 2,
    "ffn_hidden_size": 20,
    "sequence_length": 12,
    "dense_layers": 1,
    "sparse_layers": 1,
}


def small_config(model: Optional[Mapping] = None, moe: Optional[Mapping] = None, **sections: Any) -> Config:
    """Four experts in two groups, one a domain, unless told otherwise."""
    moe = {"num_experts": 4, "num_groups": 2, **(moe or {})}
    return config_from_dict({"model": {**SMALL, **(model or {})}, "moe": moe, **sections})


def build_network(
    config: Config, rows: int = len(DOCUMENTS), collectives: Optional[Collectives] = None, words: int = VOCABULARY
) -> PanGuSigma:
    collectives = collectives or create_collectives("local", Topology(1, 1), 0)
    return PanGuSigma(
        SparseContext(config, model_dims(config, rows, words, DOMAINS, TensorGroup(collectives)), collectives)
    )


def randomise(network: nn.Cell, seed: int) -> None:
    """Every trainable number becomes random, biases and norms too, so that none of them can be forgotten unnoticed."""
    rng = np.random.default_rng(seed)
    for parameter in network.trainable_params():
        around = 1.0 if parameter.name.endswith("gamma") else 0.0
        values = around + 0.3 * rng.standard_normal(parameter.shape)
        parameter.set_data(Tensor(values.astype(np.float32)))


def make_batch(seed: int = 0, rows: int = len(DOCUMENTS), homes: int = 1) -> Dict[str, np.ndarray]:
    """Rows that hold several documents; the loss is masked at their ends and in a few more places."""
    rng = np.random.default_rng(seed)
    length = sum(DOCUMENTS[0])
    lengths = [DOCUMENTS[row % len(DOCUMENTS)] for row in range(rows)]
    mask = (rng.random((rows, length)) < 0.9).astype(np.float32)
    for row, of_row in enumerate(lengths):
        mask[row, np.cumsum(of_row) - 1] = 0.0
    return {
        "ids": rng.integers(0, VOCABULARY, (rows, length)).astype(np.int32),
        "targets": rng.integers(0, VOCABULARY, (rows, length)).astype(np.int32),
        "positions": np.array([[p for n in of_row for p in range(n)] for of_row in lengths], np.int32),
        "documents": np.array([[d for d, n in enumerate(of_row) for _ in range(n)] for of_row in lengths], np.int32),
        "loss_mask": mask,
        "domain": (np.arange(rows, dtype=np.int32) % DOMAINS),
        "home": (3 * np.arange(rows, dtype=np.int32)) % homes,
        "seeds": rng.integers(-(2**31), 2**31, rows).astype(np.int32),
    }


def tensors(batch: Mapping[str, np.ndarray]) -> List[Tensor]:
    """In the order in which graphs take a batch (see `pangu_sigma.model.inputs`)."""
    return [Tensor(batch[name]) for name in BATCH_FIELDS]


def parameter_arrays(network: nn.Cell) -> Dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}


def layer_spec(config: Config, rows: int, training: bool) -> LayerSpec:
    """The sparse layers as the reference wants them. Domain i uses group i, so all experts are in play."""
    moe, router = config.moe, config.moe.router
    own = router.switch if router.type == "switch" else router.locmoe
    factor = moe.capacity.factor if training else moe.capacity.evaluation_factor
    tokens = rows * config.model.sequence_length
    ranks = moe.logical_topology
    layout = Topology(1, 1) if ranks is None else Topology(ranks.world_size, ranks.ranks_per_node, ranks.expert)
    return LayerSpec(
        layout=layout,
        placement=ExpertPlacement(moe.num_experts, moe.num_groups, layout.expert, moe.expert_placement),
        capacity=min(tokens, ceil(factor * router.top_k * tokens / moe.num_experts)),
        router=router.type,
        gate=router.locmoe.gate,
        domain_groups=tuple(range(DOMAINS)) if moe.num_groups > 1 else (0,) * DOMAINS,
        top_k=router.top_k,
        scale_by_gate=moe.scale_by_gate,
        activation=config.model.activation,
        drop_priority=moe.dispatch.drop_priority,
        statistics=router.statistics,
        alpha=own.aux_loss_weight,
        mu=router.locmoe.locality_loss_weight,
        smoothing=router.locmoe.locality_smoothing,
    )


class Doubling(nn.Cell):
    """The sum over two ranks that hold the same."""

    def construct(self, x: Tensor) -> Tensor:
        return x * 2.0


class TwinCollectives(Collectives):
    """One of several ranks, alone: where two ranks would exchange something, the other one holds the same."""

    def _cell(self, operation: str, group: RankGroup, tag: str, root: int) -> nn.Cell:
        return Doubling()

    def _all_to_all_async(self, group: RankGroup, tag: str) -> AsyncAllToAll:
        return AsyncAllToAll(Doubling(), nn.Identity())

    def _uneven(self, group: RankGroup, tag: str, size: UnevenRows) -> nn.Cell:
        return nn.Identity()

    def barrier(self) -> None:
        """Nobody else is there."""

    def bytes_sent(self, cause: Optional[str] = None) -> BytesSent:
        return BytesSent(0, 0, counted=False)

    def times(self, cause: Optional[str] = None) -> CommunicationTimes:
        return CommunicationTimes(0.0, 0.0)

    def close(self) -> None:
        """Nothing to close."""


class Logits(nn.Cell):
    """The network's logits alone."""

    def __init__(self, network: PanGuSigma) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, *fields: Tensor) -> Tensor:
        batch = unpack_batch(*fields)
        logits, _ = self.network(
            batch["ids"], batch["positions"], batch["documents"], batch["domain"], batch["home"], batch["seeds"]
        )
        return logits


class ObjectiveGradients(nn.Cell):
    """The objective, its sums, and its gradients for the parameters given."""

    def __init__(self, objective: Objective, parameters: List) -> None:
        super().__init__(auto_prefix=False)
        self.objective = objective
        self.differentiate = ops.value_and_grad(objective, None, ParameterTuple(parameters), has_aux=True)

    def construct(self, loss_scale: Tensor, *fields: Tensor) -> Tuple[Tensor, Dict[str, Tensor], Tuple[Tensor, ...]]:
        (value, sums), gradients = self.differentiate(unpack_batch(*fields), loss_scale)
        return value, sums, gradients


@dataclass(frozen=True)
class Evaluation:
    """What MindSpore makes of a batch, as arrays."""

    value: float
    sums: Dict[str, np.ndarray]
    gradients: Dict[str, np.ndarray]


class SmallNetwork:
    """A network, its compiled forms (compiled on first use), and its double in NumPy.

    Args:
        numpy: the module `numpy_model`.
    """

    def __init__(self, numpy: Any, config: Config, seed: int = 0, rows: int = len(DOCUMENTS)) -> None:
        self.numpy, self.config, self.rows = numpy, config, rows
        self.network = build_network(config, rows)
        randomise(self.network, seed)
        self.nominal_tokens = 7.0 * rows  # arbitrary, and not the number of tokens
        self.objective = Objective(self.network, int(self.nominal_tokens))
        self._logits = Logits(self.network)
        self._gradients = ObjectiveGradients(self.objective, self.network.trainable_params())

    def batch(self, seed: int = 0) -> Dict[str, np.ndarray]:
        """A batch whose homes are ranks of the layout that the sparse layers refer to."""
        layout = self.config.moe.logical_topology
        return make_batch(seed, self.rows, 1 if layout is None else layout.world_size)

    def logits(self, batch: Mapping[str, np.ndarray], training: bool = False) -> np.ndarray:
        self._logits.set_train(training)
        return self._logits(*tensors(batch)).asnumpy()

    def evaluate(self, batch: Mapping[str, np.ndarray], loss_scale: float = 1.0) -> Evaluation:
        """Objective, sums and gradients in training mode."""
        self._gradients.set_train()
        value, sums, gradients = self._gradients(Tensor(np.float32(loss_scale)), *tensors(batch))
        names = [parameter.name for parameter in self.network.trainable_params()]
        return Evaluation(
            float(value.asnumpy()),
            {name: total.asnumpy() for name, total in sums.items()},
            {name: gradient.asnumpy() for name, gradient in zip(names, gradients)},
        )

    def double(self, training: bool, factors: Optional[Mapping[str, np.ndarray]] = None) -> Any:
        """The same network, weights and all, as a `NumpyModel`."""
        model = self.config.model
        sparse = model.sparse_layers > 0 or model.sparse_query_layer
        options = self.numpy.NumpyOptions(
            model.dense_layers,
            model.sparse_layers,
            model.num_heads,
            VOCABULARY,
            model.layer_norm_epsilon,
            model.activation,
            model.sparse_query_layer,
            model.domain_embeddings,
            layer_spec(self.config, self.rows, training) if sparse else None,
            model.final_norm == "after_query",
        )
        return self.numpy.NumpyModel(options, parameter_arrays(self.network), factors)

    def with_precision(self, precision: str) -> "SmallNetwork":
        """A network of the same weights that computes in another type."""
        other = SmallNetwork(
            self.numpy, replace(self.config, runtime=replace(self.config.runtime, precision=precision)), rows=self.rows
        )
        for mine, copy in zip(self.network.get_parameters(), other.network.get_parameters()):
            copy.set_data(Tensor(mine.asnumpy()))
        return other
