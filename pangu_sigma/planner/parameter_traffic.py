"""What every micro-batch reads and writes of parameters and their gradients besides its products, by the memory's
bandwidth.

A weight that a product reads in half precision is cast, in a step of one micro-batch; with several there is a copy,
made once a step (`pangu_sigma.train.half_copies`). A gradient leaves its product in that type; it is cast to float32,
and with several micro-batches added to what there is: by a pass over both, or where `runtime.fused.accumulate` has it
so inside the product, or by an operator that reads both types. Not counted: what products themselves read and write,
and the two gradients of the word table, of the head and of the embedding, which become one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pangu_sigma.config.chips import LARGEST_IN_PRODUCT
from pangu_sigma.model.parameter_groups import reads_copy
from pangu_sigma.planner.hardware import Hardware
from pangu_sigma.planner.job import ITEM, PlannedJob
from pangu_sigma.planner.parameters import PlannedParameter, parameters

GIGA = 1e9
_CAST = ITEM + 2  # bytes of a number cast between float32 and half precision, either way
_ADD = 3 * ITEM  # what there is and what is new are read, the sum is written
_IN_PRODUCT = 2 * ITEM  # what there is is read, the sum is written
_ADD_HALF = 2 + 2 * ITEM  # what is new is read as it is


class _Bytes(NamedTuple):
    """Of one number: in each micro-batch, and once a step."""

    micro_batch: int
    step: int


@dataclass(frozen=True)
class ParameterTraffic:
    """Of one rank.

    Attributes:
        numbers: parameters that it holds.
        micro_batch: bytes in each micro-batch.
        step: bytes once a step: copies are made, accumulators are emptied.
        micro_batches: of a step.
    """

    numbers: int
    micro_batch: int
    step: int
    micro_batches: int

    @property
    def total(self) -> int:
        """Bytes of a step."""
        return self.micro_batch * self.micro_batches + self.step

    @property
    def per_number(self) -> float:
        """Bytes a parameter and micro-batch, what is done once a step apart."""
        return self.micro_batch / self.numbers

    def seconds(self, hardware: Hardware, sharing: int) -> float:
        """Of a step on `hardware`, whose bandwidth so many ranks share (`sharing`)."""
        return self.total * sharing / (hardware.compute.bandwidth_gb_s.value * GIGA)


def parameter_traffic(job: PlannedJob) -> ParameterTraffic:
    """Of one rank of `job`."""
    found = [(one.size, _bytes_of(one, job)) for one in parameters(job)]
    return ParameterTraffic(
        sum(size for size, _ in found),
        sum(size * each.micro_batch for size, each in found),
        sum(size * each.step for size, each in found),
        job.micro_batches,
    )


def _bytes_of(one: PlannedParameter, job: PlannedJob) -> _Bytes:
    half, several = job.compute_item < ITEM and reads_copy(one.name), job.micro_batches > 1
    if not several:
        return _Bytes(2 * _CAST, 0) if half else _Bytes(0, 0)  # of the weight, and of its gradient
    if not half:
        return _Bytes(_ADD, ITEM)
    added = _CAST + _ADD
    if job.config.runtime.fused.accumulate and one.name != "embedding.word":  # whose two gradients make one of float32
        added = _IN_PRODUCT if one.is_map and one.size <= LARGEST_IN_PRODUCT else _ADD_HALF
    return _Bytes(added, _CAST + ITEM)
