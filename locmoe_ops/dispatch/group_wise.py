"""Group-wise exchange (LocMoE, arXiv 2401.13920): each rank of a tensor-parallel group sends a share of what all of
them hold.

The ranks of a group hold the same tokens, so each sends 1/P of the slots in its own expert-parallel group, between
nodes, and what arrives is put together inside the tensor-parallel group, over the fast links of a node. A token's way:

1. `ScatterToTpRegion` of the send buffer, at home.
2. All-to-all to the experts (any dispatcher's).
3. `AllGatherSlots`: every rank of the group that holds the experts, and of each expert a part of the inner features,
   needs all slots.
4. `ReduceScatterSlots`: outputs are summed over those ranks, and each keeps its own share of them, to send it back.
5. All-to-all back; `GatherFromTpRegion` at home.

1 and 5 are a dispatcher's; 3 and 4 take the place of the plain ways into and out of the experts' split region (see
`locmoe_ops.tensor_parallel` for the convention that all gradients follow), so that a dispatcher need not know of it.

Shape legend: P ranks of the tensor-parallel group, n rows of a share, L experts a rank, s slots of an expert in a
share, d hidden size.
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn

from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.functions import swap_first


class ScatterToTpRegion(nn.Cell):
    """This rank's share of rows that all ranks of the group hold: of P neighbouring rows, the one at its own place.

    The gradient puts the shares' gradients together, as everybody holds the whole.

    Args:
        collectives: backend. tag: names the collective.

    Input: <float>[n * P, d]. Output: <float>[n, d].
    """

    def __init__(self, collectives: Collectives, tag: str) -> None:
        super().__init__()
        self.ranks, self.index = collectives.topology.tensor, collectives.topology.tp_index(collectives.rank)
        self.gather = collectives.all_gather("tp", f"{tag}/gradient")

    def construct(self, rows: Tensor) -> Tensor:
        return rows.reshape(-1, self.ranks, rows.shape[-1])[:, self.index]  # (n, d) <- (n, P, d) <- (n * P, d)

    def bprop(self, rows: Tensor, out: Tensor, dout: Tensor) -> tuple[Any]:
        """The gradient of `rows` from that of `out`, `dout`."""
        shares = self.gather(dout).reshape(self.ranks, -1, dout.shape[-1])  # (P, n, d) <- (P * n, d) <- (n, d)
        return (shares.transpose(1, 0, 2).reshape(rows.shape),)  # (n * P, d) <- (n, P, d)


class GatherFromTpRegion(nn.Cell):
    """The inverse of `ScatterToTpRegion`: every rank's share, back in place; the gradient, the same on all ranks, is
    cut again.

    Args:
        collectives: backend. tag: names the collective.

    Input: <float>[n, d]. Output: <float>[n * P, d].
    """

    def __init__(self, collectives: Collectives, tag: str) -> None:
        super().__init__()
        self.ranks, self.index = collectives.topology.tensor, collectives.topology.tp_index(collectives.rank)
        self.gather = collectives.all_gather("tp", tag)

    def construct(self, share: Tensor) -> Tensor:
        width = share.shape[-1]
        shares = self.gather(share).reshape(self.ranks, -1, width)  # (P, n, d) <- (P * n, d) <- (n, d)
        return shares.transpose(1, 0, 2).reshape(-1, width)  # (n * P, d) <- (n, P, d)

    def bprop(self, share: Tensor, out: Tensor, dout: Tensor) -> tuple[Any]:
        """The gradient of `share` from that of `out`, `dout`."""
        return (dout.reshape(-1, self.ranks, dout.shape[-1])[:, self.index],)  # (n, d) <- (n, P, d) <- (n * P, d)


class AllGatherSlots(nn.Cell):
    """The way into a split region for slots of which each rank of the group has a share: everybody gets all of them.

    Its gradient, exactly that of the gather, sums over the group and leaves each rank its share.

    Args:
        collectives: backend. tag: names the collective.

    Input: <float>[L, s, d]. Output: <float>[L, P * s, d].
    """

    def __init__(self, collectives: Collectives, tag: str) -> None:
        super().__init__()
        self.ranks = collectives.topology.tensor
        self.gather = collectives.all_gather("tp", tag)

    def construct(self, slots: Tensor) -> Tensor:
        shape = slots.shape
        shares = self.gather(slots).reshape((self.ranks,) + shape)  # (P, L, s, d) <- (P * L, s, d) <- (L, s, d)
        return swap_first(shares).reshape(shape[0], -1, shape[2])  # (L, P * s, d) <- (L, P, s, d)


class ReduceScatterSlots(nn.Cell):
    """The way out again: sums over the group, of which each rank keeps those of its own share. Its gradient gathers.

    Args:
        collectives: backend. tag: names the collective.

    Input: <float>[L, P * s, d], as `AllGatherSlots` ordered them. Output: <float>[L, s, d].
    """

    def __init__(self, collectives: Collectives, tag: str) -> None:
        super().__init__()
        self.ranks = collectives.topology.tensor
        self.scatter = collectives.reduce_scatter("tp", tag)

    def construct(self, slots: Tensor) -> Tensor:
        experts, width = slots.shape[0], slots.shape[2]
        shares = swap_first(slots.reshape(experts, self.ranks, -1, width))  # (P, L, s, d) <- (L, P, s, d)
        return self.scatter(shares.reshape(self.ranks * experts, -1, width))  # (L, s, d) <- (P * L, s, d)
