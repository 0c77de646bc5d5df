"""Gates: a value for each expert that may serve a token.

Shape legend: T tokens, d hidden size, E experts, G groups, n = E / G experts of a group, V vocabulary size.
"""

from typing import Optional, Sequence

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.errors import InputError
from locmoe_ops.functions import root_softplus
from locmoe_ops.routers.base import RoutingShape


def grap_weights(experts: int, hidden_size: int) -> np.ndarray:
    """Grouped average pooling as gate weights (LocMoE Eq. 4): row i is n/d on the i-th block of features, 0 elsewhere.

    Args:
        experts: n. hidden_size: d.

    Returns: <float32>[n, d]; the rows are orthogonal and fixed. Raises InputError where n does not divide d.
    """
    if hidden_size % experts:
        raise InputError(
            f"grouped average pooling: {experts} experts of a group do not divide hidden size {hidden_size}; "
            "expected a divisor"
        )
    block = hidden_size // experts
    return np.kron(np.eye(experts, dtype=np.float32), np.full((1, block), experts / hidden_size, np.float32))


class GateScores(nn.Cell):
    """Scores of gate values v.

    Args:
        function: `softmax` over the experts of the group (DeepSeek-V2, Switch); `sigmoid` of each (DeepSeek-V3,
            arXiv 2412.19437, Eq. 15); `sqrt_softplus`, sqrt(log(1 + exp v)) of each (DeepSeek-V4).

    Input: <float32>[T, n]. Output: <float32>[T, n].
    """

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function, self.softmax = function, ops.Softmax(-1)

    def construct(self, values: Tensor) -> Tensor:
        if self.function == "softmax":
            return self.softmax(values)
        return ops.sigmoid(values) if self.function == "sigmoid" else root_softplus(values)


class GrAPGate(nn.Cell):
    """Fixed gate: value i is the mean of the i-th block of features, the same for every group. Nothing is learned.

    Computed as a product with Eq. 4's weights, so that it is the dense gate with those weights to the last bit.

    Args:
        shape: sizes.
        order: <int>[d], a permutation: block i then holds features order[i*d/n], order[i*d/n + 1], ... in place of
            neighbours. The weights stay orthogonal. None: as in the paper.

    Inputs: x <float32>[T, d]; group_mask <float32>[T, G], unused. Output: <float32>[T, n].
    """

    def __init__(self, shape: RoutingShape, order: Optional[np.ndarray] = None) -> None:
        super().__init__()
        weights = grap_weights(shape.per_group, shape.hidden_size)
        self.weight = Tensor(weights if order is None else weights[:, np.argsort(order)])  # (n, d)
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor, group_mask: Tensor) -> Tensor:
        return self.matmul(x, self.weight)


def draw_codes(winners: np.ndarray, experts: int, hidden_size: int, seed: Sequence[int]) -> np.ndarray:
    """Codes for a `CodeGate`: random directions, each with its largest coordinate where it is wanted.

    Drawn uniformly over the sphere, as LocMoE's bound on the capacity takes tokens to be, with the spread that means of
    hidden_size / experts standardised features have, a GrAP gate's values. Then a code is mirrored if none of its
    coordinates is positive, since Eq. 2's ReLU would leave its expert undecided, and its largest coordinate changes
    places with the wanted one.

    Args:
        winners: <int>[G, V], expert within the group that an id goes to (see `locmoe_ops.routers.hash_maps`).
        experts: n. hidden_size: d. seed: of the draws.

    Returns: <float32>[G, V, n].
    """
    drawn = np.random.default_rng(seed).standard_normal((*winners.shape, experts), dtype=np.float32)
    drawn = np.where(drawn.max(-1, keepdims=True) > 0.0, drawn, -drawn)
    wanted, largest = winners[..., None].astype(np.int64), drawn.argmax(-1)[..., None]
    at_wanted, at_largest = np.take_along_axis(drawn, wanted, -1), np.take_along_axis(drawn, largest, -1)
    np.put_along_axis(drawn, largest, at_wanted, -1)
    np.put_along_axis(drawn, wanted, at_largest, -1)
    return drawn * np.float32(np.sqrt(experts / hidden_size))


class CodeGate(nn.Cell):
    """Fixed gate for codes of token ids: the orthogonal weights are the axes of the codes' space, so value i is
    coordinate i (ours).

    Routes follow from token ids, as RRE's do, and nothing is learned.

    Args:
        codes: <float32>[G, V, n], of each id in each group. A buffer that checkpoints hold and no optimizer touches.
            Callers check ids against V: see `check_token_ids`.

    Inputs: ids, group <int32>[T]. Output: <float32>[T, n].
    """

    def __init__(self, codes: np.ndarray) -> None:
        super().__init__()
        _, self.vocab_size, self.experts = codes.shape
        self.codes = Parameter(Tensor(np.asarray(codes, np.float32)), name="codes", requires_grad=False)
        self.weight = Tensor(np.eye(self.experts, dtype=np.float32))

    def construct(self, ids: Tensor, group: Tensor) -> Tensor:
        codes = self.codes.reshape(-1, self.experts)  # (G*V, n) <- (G, V, n)
        return ops.gather(codes, group * self.vocab_size + ids, 0)  # (T, n)


class DenseGate(nn.Cell):
    """Learned gate without bias: one row of weights an expert (Switch Transformers, arXiv 2101.03961, Eq. 1).

    Args:
        shape: sizes.

    Inputs: x <float32>[T, d]; group_mask <float32>[T, G], one-hot. Output: <float32>[T, n], the token's group only.
    """

    def __init__(self, shape: RoutingShape) -> None:
        super().__init__()
        self.num_groups, self.per_group = shape.num_groups, shape.per_group
        weight = np.zeros((shape.num_experts, shape.hidden_size), np.float32)
        self.weight = Parameter(Tensor(weight), name="weight")
        self.matmul = ops.MatMul(transpose_b=True)

    def initialise(self, seed: int, std: float) -> None:
        """Draws normal weights of deviation `std` from `seed`, the same on every rank."""
        drawn = np.random.default_rng(seed).standard_normal(self.weight.shape, dtype=np.float32) * std
        self.weight.set_data(Tensor(drawn.astype(np.float32), dtype.float32))

    def construct(self, x: Tensor, group_mask: Tensor) -> Tensor:
        values = self.matmul(x, self.weight)  # (T, E)
        if self.num_groups == 1:
            return values
        values = values.reshape(-1, self.num_groups, self.per_group)  # (T, G, n) <- (T, E)
        return (values * group_mask.expand_dims(-1)).sum(1)  # (T, n) <- (T, G, n) * (T, G, 1)
