"""Collectives without peers: of a job of one process, and of a rank whose peers are not there."""

from __future__ import annotations

from mindspore import nn

from locmoe_ops.collectives.interface import (
    AsyncAllToAll,
    BytesSent,
    Collectives,
    CommunicationTimes,
    RankGroup,
    UnevenRows,
)
from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology


class AbsentPeers(Collectives):
    """Of one rank alone, whatever the topology says, for a network that is built and never run: every Cell is the
    identity.
    """

    def _cell(self, operation: str, group: RankGroup, tag: str, root: int) -> nn.Cell:
        return nn.Identity()

    def _all_to_all_async(self, group: RankGroup, tag: str) -> AsyncAllToAll:
        return AsyncAllToAll(nn.Identity(), nn.Identity())

    def _uneven(self, group: RankGroup, tag: str, size: UnevenRows) -> nn.Cell:
        return nn.Identity()

    def barrier(self) -> None:
        """Nobody to wait for."""

    def bytes_sent(self, cause: str | None = None) -> BytesSent:
        return BytesSent(0, 0)

    def times(self, cause: str | None = None) -> CommunicationTimes:
        return CommunicationTimes(0.0, 0.0)

    def close(self) -> None:
        """Nothing to close."""


class LocalCollectives(AbsentPeers):
    """Of a job of one process, `rank` 0 of a `topology` of one rank: no peers, no bytes, no waiting."""

    def __init__(self, rank: int, topology: Topology) -> None:
        if topology.world_size != 1:
            raise InputError(f"collectives: backend local serves one process, the topology has {topology.world_size}")
        super().__init__(rank, topology)
