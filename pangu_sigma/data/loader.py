"""Micro-batches of one rank: training rows as the sampler draws them, and the fixed validation rows."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.config.derived import micro_batch_sequences
from pangu_sigma.config.schema import Config
from pangu_sigma.data.batch import Batch, make_batch
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.domains import domain_weights
from pangu_sigma.data.known_routes import KnownRoutes
from pangu_sigma.data.manifest import SPLITS
from pangu_sigma.data.placement import RowPlacement, place_rows
from pangu_sigma.data.sampler import BatchSampler

STEPS_READ_AT_ONCE = 64


@dataclass(frozen=True)
class LoaderOptions:
    """How rows become batches.

    Attributes:
        micro_batch_size: sequences of a micro-batch.
        reset_at_document_end: whether positions restart after each document (see `make_batch`).
        eval_rows: validation rows over all ranks; 0: none.
    """

    micro_batch_size: int
    reset_at_document_end: bool = True
    eval_rows: int = 0


class LabelledRows(NamedTuple):
    """Rows by their labels: domain, number within the split, and home rank.

    Attributes: domain, row, home: one entry a row.
    """

    domain: np.ndarray  # (n,) int32
    row: np.ndarray  # (n,) int64
    home: np.ndarray  # (n,) int32


class BatchLoader:
    """The rows of one data-parallel rank, an equal, contiguous share of the global batch, in micro-batches.

    A background thread reads the rows of the next 64 steps while the current ones are used.

    Args:
        data: where rows are read.
        sampler: says which rows make up the global batch.
        rank: this one, among data-parallel ranks.
        world_size: number of data-parallel ranks.
        options: how rows become batches.

    Raises:
        InputError: `world_size` x micro-batch size does not divide the global batch.
    """

    def __init__(
        self, data: PreparedData, sampler: BatchSampler, rank: int, world_size: int, options: LoaderOptions
    ) -> None:
        size = options.micro_batch_size
        if sampler.global_batch_size % (world_size * size):
            raise InputError(
                f"train.global_batch_size: found {sampler.global_batch_size}; expected a multiple of {world_size} "
                f"(data-parallel ranks) x {size} (train.micro_batch_size)"
            )
        self._data = data
        self._sampler = sampler
        self._rank = rank
        self._world_size = world_size
        self._options = options
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch-loader")
        self._blocks: Dict[int, Future[List[Tuple[LabelledRows, np.ndarray]]]] = {}

    @property
    def notes(self) -> Tuple[str, ...]:
        """Lines for the user: what of the rows could not be placed as it was meant."""
        return self._sampler.placement.notes

    @property
    def by_routes(self) -> bool:
        """Whether rows are placed by routes: the network's are to be given (`follow`) before rows are asked for."""
        return self._sampler.placement.by_routes

    def follow(self, routes: KnownRoutes) -> None:
        """Places rows by `routes` from now on."""
        self._sampler.routes = routes

    def step(self, step: int) -> List[Batch]:
        """This rank's micro-batches of `step` (from 0), in order. Any step may be asked for; later ones come fast."""
        block, index = divmod(step, STEPS_READ_AT_ONCE)
        wanted = {number: self._blocks.get(number) for number in (block, block + 1)}
        self._blocks = {
            number: future or self._reader.submit(self._read_block, number) for number, future in wanted.items()
        }
        labels, rows = self._blocks[block].result()[index]
        return self._batches(rows, labels, np.ones(len(rows), bool))

    def validation(self) -> List[Batch]:
        """The fixed validation rows whose home is on this rank; where the job has other ranks than the layout, an equal
        share of all rows.

        Each rank has the same number of batches of micro_batch_size rows; rows that fill them up have loss_mask 0.
        """
        chosen = choose_validation_rows(
            [self._data.rows("validation", d) for d in range(len(self._data.domains))],
            self._options.eval_rows,
            self._sampler.placement,
            self._sampler.routes,
        )
        if not len(chosen.row):
            return []
        ranks, count = self._world_size, len(chosen.row)
        owner = chosen.home if self._sampler.placement.layout.world_size == ranks else np.arange(count) * ranks // count
        share = -(-np.bincount(owner).max() // self._options.micro_batch_size) * self._options.micro_batch_size
        own = np.flatnonzero(owner == self._rank)
        last = own[-1] if len(own) else count - 1
        indices = np.append(own, np.full(share - len(own), last))
        mine = LabelledRows(*(labels[indices] for labels in chosen))
        return self._batches(self._read("validation", mine.domain, mine.row), mine, np.arange(share) < len(own))

    def close(self) -> None:
        """Ends the background thread."""
        self._reader.shutdown(wait=True)

    def _read_block(self, block: int) -> List[Tuple[LabelledRows, np.ndarray]]:
        """Labels and rows (rows a step, S+1) of every step of a block. Runs in the background thread."""
        size, first = self._sampler.global_batch_size, block * STEPS_READ_AT_ONCE
        home = np.arange(size, dtype=np.int32) // (size // self._sampler.placement.layout.world_size)
        share = size // self._world_size
        own = slice(self._rank * share, (self._rank + 1) * share)
        batches = self._sampler.batches(range(first, first + STEPS_READ_AT_ONCE))
        labels = [LabelledRows(batch.domain[own], batch.row[own], home[own]) for batch in batches]
        domain, row = (np.concatenate([part[field] for part in labels]) for field in (0, 1))
        rows = self._read("train", domain, row)
        return list(zip(labels, rows.reshape(len(labels), -1, rows.shape[1])))  # (steps, rows a step, S+1)

    def _read(self, split: str, domain: np.ndarray, row: np.ndarray) -> np.ndarray:
        rows = np.empty((len(row), self._data.sequence_length + 1), np.int32)
        for number in np.unique(domain):
            chosen = domain == number
            rows[chosen] = self._data.read(split, int(number), row[chosen])
        return rows

    def _batches(self, rows: np.ndarray, labels: LabelledRows, counts: np.ndarray) -> List[Batch]:
        batch = make_batch(
            rows, labels.domain, labels.home, self._data.end_of_text, self._options.reset_at_document_end
        )
        batch = batch._replace(loss_mask=batch.loss_mask * counts[:, None].astype(np.float32))
        starts = range(0, len(rows), self._options.micro_batch_size)
        return [Batch(*(array[start : start + self._options.micro_batch_size] for array in batch)) for start in starts]


def choose_validation_rows(
    available: List[int], wanted: int, placement: RowPlacement, routes: Optional[KnownRoutes] = None
) -> LabelledRows:
    """Validation rows: domains in rotation, passing over one that runs out; a domain's rows spread evenly over its
    split.

    Args:
        available: rows of each domain.
        wanted: how many are chosen, if there are as many.
        placement: which ranks receive which rows. routes: that place them, if any do.

    The rows are the same for any placement; their homes are ranks of a zone that has their domain, in equal shares, or
    of the node whose training rows they belong to, or that `routes` assign them, and they are ordered by home.
    """
    counts = [0] * len(available)
    left = min(wanted, sum(available))
    while left:  # one of each domain that has rows left, in turn
        open_domains = [d for d, count in enumerate(counts) if count < available[d]]
        for d in open_domains[:left]:
            counts[d] += 1
        left -= min(left, len(open_domains))
    domain = np.repeat(np.arange(len(available), dtype=np.int32), counts)
    number = np.concatenate([np.arange(count) for count in counts]) if len(counts) else np.empty(0, np.int64)
    row = number * np.asarray(available)[domain] // np.asarray(counts)[domain]
    order = np.lexsort((domain, number))
    home = np.empty(len(row), np.int32)
    for zone in placement.zones:
        members = order[np.isin(domain[order], zone.domains)]
        parts = len(zone.ranks) // placement.layout.ranks_per_node if zone.line or placement.by_routes else 1
        part = np.zeros(len(members), np.int64)
        if zone.line:
            places = zone.line.places("validation", domain[members], row[members])
            part = np.clip((places * parts).astype(np.int64), 0, parts - 1)
        elif placement.by_routes:
            assert routes is not None, "rows placed by routes before the routes are known"
            part = routes.nodes("validation", domain[members], row[members])
        for index, ranks in enumerate(np.array_split(zone.ranks, parts)):
            of_part = members[part == index]
            home[of_part] = ranks[np.arange(len(of_part)) * len(ranks) // max(1, len(of_part))]
    order = order[np.argsort(home[order], kind="stable")]
    return LabelledRows(domain[order], row[order].astype(np.int64), home[order])


def create_loader(config: Config, data: PreparedData, layout: Topology, rank: int, world_size: int) -> BatchLoader:
    """The loader that `config` describes for `data`, for data-parallel rank `rank` of `world_size`; `layout` places the
    rows.

    Raises:
        InputError: domains, weights, clusters, layout and batch sizes that do not fit together.
    """
    train, mixing = config.train, config.data.mixing
    cells, clusters = {split: data.cells(split) for split in SPLITS}, data.manifest.clusters
    within = clusters.within if clusters is not None else None
    weights = domain_weights(config.data.weights, data.domains)
    placement = place_rows(layout, config.data.placement, mixing, data.domains, cells, within, weights)
    sampler = BatchSampler(cells["train"], placement, train.global_batch_size, train.seed, mixing, weights)
    micro_batch_size = micro_batch_sequences(config, world_size)
    options = LoaderOptions(micro_batch_size, config.data.reset_at_document_end, train.eval_rows)
    return BatchLoader(data, sampler, rank, world_size, options)
