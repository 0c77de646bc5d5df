"""A batch on its way into a compiled graph: packed once on the host, unpacked once inside.

Tensors go in by position, because a dict of tensors that enters a top-level Cell is a constant of its graph, which
would be compiled anew for every batch. Inside, they are read by name. Training, evaluation, scoring and the probe all
feed a network through this pair.

Shape legend: B rows of this rank's micro-batch, S positions.
"""

import zlib
from typing import List, Optional, Tuple, TypedDict

import numpy as np

from mindspore import Tensor

from locmoe_ops.moe import check_token_ids
from pangu_sigma.data.batch import Batch


class BatchTensors(TypedDict):
    """The tensors of a micro-batch by name, inside a graph.

    Attributes:
        ids, targets, positions, documents: <int32>[B, S].
        loss_mask: <float32>[B, S], 1 where the target counts.
        domain, home, seeds: <int32>[B]. `seeds` are those of dropout and jitter, see `row_seeds`.
    """

    ids: Tensor
    targets: Tensor
    positions: Tensor
    documents: Tensor
    loss_mask: Tensor
    domain: Tensor
    home: Tensor
    seeds: Tensor


BATCH_FIELDS: Tuple[str, ...] = tuple(BatchTensors.__annotations__)  # the order in which a graph takes them


def pack_batch(batch: Batch, vocab_size: int, domains: int, key: Optional[Tuple[int, int]] = None) -> List[Tensor]:
    """The inputs of a graph that reads a batch, in the order of `BATCH_FIELDS`.

    Args:
        batch: of this rank.
        vocab_size, domains: rows of the tables that the ids look up.
        key: what the seeds depend on besides the rows, as (seed of the run, step); None: all seeds are 0.

    Raises:
        InputError: a token or domain id lies outside its table.
    """
    check_token_ids(np.concatenate((batch.ids, batch.targets)), batch.domain, vocab_size, domains)
    seeds = np.zeros_like(batch.home) if key is None else row_seeds(batch.ids, batch.home, key)
    arrays = {**batch._asdict(), "seeds": seeds}
    return [Tensor(arrays[name]) for name in BATCH_FIELDS]


def unpack_batch(
    ids: Tensor,
    targets: Tensor,
    positions: Tensor,
    documents: Tensor,
    loss_mask: Tensor,
    domain: Tensor,
    home: Tensor,
    seeds: Tensor,
) -> BatchTensors:
    """The inputs of a graph by name, see `BatchTensors`: its Cell calls `unpack_batch(*fields)`.

    Args:
        ids, targets, positions, documents, loss_mask, domain, home, seeds: as `pack_batch` orders them.
    """
    return {
        "ids": ids,
        "targets": targets,
        "positions": positions,
        "documents": documents,
        "loss_mask": loss_mask,
        "domain": domain,
        "home": home,
        "seeds": seeds,
    }


def row_seeds(ids: np.ndarray, home: np.ndarray, key: Tuple[int, int]) -> np.ndarray:
    """<int32>[B]: a seed per row for dropout and jitter, a function of `key` and the row's own text and home.

    No row number enters, so that the numbers do not depend on how the rows of a step are spread over ranks.

    Args:
        ids: <int32>[B, S].
        home: <int32>[B], the rank that each row belongs to.
        key: (seed of the run, step).
    """
    prefix = repr(key).encode()
    seeds = [
        zlib.crc32(row.tobytes(), zlib.crc32(prefix + int(place).to_bytes(4, "little")))
        for row, place in zip(ids, home)
    ]
    return np.asarray(seeds, np.uint32).view(np.int32)  # <int32>[B] <- <uint32>[B], the same bits
