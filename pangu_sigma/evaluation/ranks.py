"""The ranks that trained a model, played one after the other by one process: each with its own validation rows and its
own slots.

A rank's micro-batches share its slots with nobody (see `Dispatcher`), so that what it drops does not depend on the
other ranks.

Shape legend: R data-parallel ranks, E experts, T tokens of a rank, k choices, N = k * T assignments (choice-major), V
nodes.
"""

from contextlib import closing
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from mindspore import Parameter, Tensor, dtype, nn, ops

from locmoe_ops.collectives.local import AbsentPeers
from locmoe_ops.dispatch.flat import FlatDispatcher
from locmoe_ops.dispatch.geometry import DispatchOptions, DispatchSetup, FixedCapacities
from locmoe_ops.dispatch.node_dedup import SharedCopies
from locmoe_ops.dispatch.registry import dispatcher_spec
from locmoe_ops.dispatch.repick import RepickingAssignment
from locmoe_ops.dispatch.slots import DispatchContext
from locmoe_ops.functions import choice_major
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


class TrainedSlots(NamedTuple):
    """What the tokens of each data-parallel rank have in validation.

    Attributes:
        capacity: <int32>[R, E], slots of each expert.
        copies: slots for copies of tokens to each other node, where a token travels to a node once; 0: no such limit.
        node: <int32>[R, E], with copies: the node that each expert is on; V: the rank's own.
        nodes: V.
    """

    capacity: np.ndarray
    copies: int
    node: np.ndarray
    nodes: int


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
        self._slots = found = trained_slots(context.config, context.shape, topology)
        rules, options = context.slot_rules, moe.dispatch
        setup = DispatchSetup(
            rules.topology,
            rules.placement,
            rules.tokens,
            moe.router.top_k,
            FixedCapacities(max(int(found.capacity.max()), 1)),
            DispatchOptions(drop_priority=options.drop_priority, overflow=options.overflow),
        )
        for layer in layers:
            dispatcher = FlatDispatcher(context.collectives, setup, "all_to_all/as trained")
            slots = dispatcher.slots
            # What is a constant of each layer's graph becomes one parameter of all.
            self._share(slots, "capacity")
            if isinstance(slots, RepickingAssignment):
                self._share(slots, "room")
            if found.copies:
                dispatcher.slots = LimitedCopies(slots, setup, found)
                self._share(dispatcher.slots, "node")
            layer.evaluation_dispatcher = dispatcher

    def _share(self, cell: nn.Cell, name: str) -> None:
        own = Parameter(getattr(cell, name), name=f"as_trained.{name}", requires_grad=False)
        delattr(cell, name)
        setattr(cell, name, self._tables.setdefault(name, own))

    def play(self, rank: int) -> None:
        """From now on the network has the slots of data-parallel rank `rank`. Needs no other graph."""
        if not self._tables:
            return
        found, capacity = self._slots, self._slots.capacity[rank]
        self._tables["capacity"].set_data(Tensor(np.append(capacity, 0).astype(np.int32)))  # (E + 1,) <- (E,)
        if "room" in self._tables:
            self._tables["room"].set_data(Tensor(capacity, dtype.float32))
        if "node" in self._tables:
            self._tables["node"].set_data(Tensor(np.append(found.node[rank], found.nodes).astype(np.int32)))


class LimitedCopies(nn.Cell):
    """Slots of experts, less the assignments to other nodes that find no slot for a copy of their token.

    Args:
        slots: `SlotAssignment` or `RepickingAssignment`. setup: tokens, choices and options. found: the limit.

    Inputs and output: those of `slots`; in the output keep_mask alone is another.
    """

    def __init__(self, slots: nn.Cell, setup: DispatchSetup, found: TrainedSlots) -> None:
        super().__init__()
        self.slots = slots
        by_weight = setup.options.drop_priority == "weight"
        self.copies = SharedCopies(setup.tokens, setup.top_k, found.nodes, found.copies, by_weight)
        self.node = Tensor(np.full(found.node.shape[1] + 1, found.nodes, np.int32))  # (E + 1,), V: stays

    def construct(self, expert: Tensor, weight: Tensor, second: Optional[Tensor] = None) -> DispatchContext:
        context = self.slots(expert, weight) if second is None else self.slots(expert, weight, second)
        wanted = choice_major(expert) if second is None else context["expert"]  # (N,) <- (T, k)
        kept = context["keep_mask"].reshape(-1) > 0.5  # (N,) <- (N, 1)
        node = ops.select(kept, ops.gather(self.node, wanted, 0), self.copies.no_node)
        carried = self.copies.carried(node, self.copies.share(node, weight)[1])
        stays = ops.logical_and(kept, node == self.copies.nodes)
        context["keep_mask"] = ops.cast(ops.logical_or(stays, carried), dtype.float32).reshape(-1, 1)  # (N, 1) <- (N,)
        return context


def trained_slots(config: Config, shape: ModelDims, topology: Topology) -> TrainedSlots:
    """What each rank has in validation, as its own dispatchers say.

    Args:
        config, shape: of the network, on one process.
        topology: the job that trained it.
    """
    capacity, nodes, factor = [], [], config.moe.capacity.evaluation_factor
    for rank in range(0, topology.world_size, topology.tensor):
        context = SparseContext(config, shape, AbsentPeers(rank, topology))
        rules, placement = context.slot_rules, context.slot_rules.placement
        dispatcher = build_dispatcher(context, placement, factor, "", evaluation=True)
        capacity.append(dispatcher.slots.capacity.asnumpy()[:-1])
        setup = rules.dispatch_setup(placement, factor, evaluation=True)
        node = np.asarray(placement.position_of) // setup.experts_per_node  # (E,)
        nodes.append(np.where(node == setup.node_of(rank), setup.nodes, node))
    copies = dispatcher_spec(config.moe.dispatch.type).slots(setup).copies
    return TrainedSlots(np.stack(capacity).astype(np.int32), copies, np.stack(nodes).astype(np.int32), setup.nodes)
