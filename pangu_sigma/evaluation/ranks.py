"""The ranks that trained a model, played one after the other by one process: each with its own validation rows and its
own slots.

A rank's micro-batches share its slots with nobody (see `Dispatcher`), so that what it drops does not depend on the
other ranks.

Shape legend: R data-parallel ranks, E experts.
"""

from contextlib import closing
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from mindspore import Parameter, Tensor, dtype

from locmoe_ops.collectives.local import AbsentPeers
from locmoe_ops.dispatch.flat import FlatDispatcher
from locmoe_ops.dispatch.geometry import DispatchOptions, DispatchSetup, FixedCapacities
from locmoe_ops.dispatch.registry import dispatcher_spec
from locmoe_ops.dispatch.repick import RepickingAssignment
from locmoe_ops.topology import Topology
from pangu_sigma.config.schema import Config
from pangu_sigma.data.batch import Batch
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.domains import resolve_domain_groups
from pangu_sigma.data.known_routes import KnownRoutes
from pangu_sigma.data.loader import BatchLoader, create_loader
from pangu_sigma.model.dims import ModelDims
from pangu_sigma.model.pangu_sigma import PanGuSigma, sparse_layers
from pangu_sigma.model.sparse import SparseContext, build_dispatcher, homes_of_ids


class RankBatch(NamedTuple):
    """A micro-batch, and the data-parallel rank that it belongs to."""

    rank: int
    batch: Batch


def validation_batches(
    config: Config, data: PreparedData, layout: Topology, ranks: int, network: Optional[PanGuSigma] = None
) -> List[RankBatch]:
    """The validation rows in the micro-batches that the ranks of a job make of them.

    Args:
        config: says rows and micro-batches.
        data: the prepared rows.
        layout: of expert groups, which rows have their homes in.
        ranks: how many data-parallel ranks share them out.
        network: whose routes place the rows, where `data.placement` is known_routes.

    Raises InputError: see `create_loader`.
    """
    found: List[RankBatch] = []
    for rank in range(ranks):
        with closing(_loader(config, data, layout, (rank, ranks), network)) as loader:
            found += [RankBatch(rank, batch) for batch in loader.validation() if batch.loss_mask.any()]
    return found


def training_batches(
    config: Config, data: PreparedData, layout: Topology, ranks: int, network: Optional[PanGuSigma], rows: int
) -> List[RankBatch]:
    """The micro-batches of the first training steps, of whole steps, until they hold `rows` rows or the data has begun
    anew.

    Args:
        config, data, layout, ranks, network: see `validation_batches`. rows: how many are wanted.
    """
    available = sum(data.rows("train", domain) for domain in range(len(data.domains)))
    steps = -(-min(rows, available) // config.train.global_batch_size)
    by_rank: List[List[List[Batch]]] = []  # of each rank, of each step
    for rank in range(ranks):
        with closing(_loader(config, data, layout, (rank, ranks), network)) as loader:
            by_rank.append([loader.step(step) for step in range(steps)])
    return [RankBatch(rank, batch) for step in range(steps) for rank in range(ranks) for batch in by_rank[rank][step]]


def _loader(
    config: Config, data: PreparedData, layout: Topology, of: Tuple[int, int], network: Optional[PanGuSigma]
) -> BatchLoader:
    """The loader of one of several data-parallel ranks: `of`, its number and how many there are."""
    loader = create_loader(config, data, layout, *of)
    if loader.by_routes and network is not None:
        groups = resolve_domain_groups(config.moe.domain_groups, len(data.domains), config.moe.num_groups)
        loader.follow(KnownRoutes(data, groups, homes_of_ids(config, layout, sparse_layers(network))))
    return loader


class TrainedRanks:
    """Gives the sparse layers of a network on one process the slots that a given rank had in validation.

    Args:
        network: its evaluation dispatchers are replaced; not compiled yet, and its weights restored.
        context: what its layers were built from, of one process; config.moe says the layout, dispatch and capacity of
            training.
        topology: the job that trained it.
    """

    def __init__(self, network: PanGuSigma, context: SparseContext, topology: Topology) -> None:
        self._tables: Dict[str, Parameter] = {}
        layers, moe = sparse_layers(network), context.config.moe
        if not layers or not dispatcher_spec(moe.dispatch.type).has_slots:  # which never drops anything
            return
        self._capacities = trained_capacities(context.config, context.shape, topology)
        rules, options = context.slot_rules, moe.dispatch
        setup = DispatchSetup(
            rules.topology,
            rules.placement,
            rules.tokens,
            moe.router.top_k,
            FixedCapacities(max(int(self._capacities.max()), 1)),
            DispatchOptions(drop_priority=options.drop_priority, overflow=options.overflow),
        )
        for layer in layers:
            dispatcher = FlatDispatcher(context.collectives, setup, "all_to_all/as trained")
            slots = dispatcher.slots
            # What is a constant of each layer's graph becomes one parameter of all.
            for name in ("capacity", "room") if isinstance(slots, RepickingAssignment) else ("capacity",):
                own = Parameter(getattr(slots, name), name=f"as_trained.{name}", requires_grad=False)
                delattr(slots, name)
                setattr(slots, name, self._tables.setdefault(name, own))
            layer.evaluation_dispatcher = dispatcher

    def play(self, rank: int) -> None:
        """From now on the network has the slots of data-parallel rank `rank`. Needs no other graph."""
        if not self._tables:
            return
        capacity = self._capacities[rank]
        self._tables["capacity"].set_data(Tensor(np.append(capacity, 0).astype(np.int32)))  # (E + 1,) <- (E,)
        if "room" in self._tables:
            self._tables["room"].set_data(Tensor(capacity, dtype.float32))


def trained_capacities(config: Config, shape: ModelDims, topology: Topology) -> np.ndarray:
    """<int32>[R, E]: slots of each expert for tokens of each data-parallel rank in validation, as their own dispatchers
    say.

    Args:
        config, shape: of the network, on one process.
        topology: the job that trained it.
    """
    found = []
    for rank in range(0, topology.world_size, topology.tensor):
        context = SparseContext(config, shape, AbsentPeers(rank, topology))
        dispatcher = build_dispatcher(
            context, context.slot_rules.placement, config.moe.capacity.evaluation_factor, "", evaluation=True
        )
        found.append(dispatcher.slots.capacity.asnumpy()[:-1])
    return np.stack(found).astype(np.int32)
