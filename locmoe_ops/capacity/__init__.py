"""Expert capacity: how many slots an expert keeps for the tokens of one rank.

`factor`: a multiple of the evenly spread load. `bound`: LocMoE's minimum in tokens. `delta`: the cosine that the bound needs,
measured on a batch. `policy`: from the bound to slots, and slots that change while training runs.
"""

from locmoe_ops.capacity.bound import FORMS, angle_probability, minimum_capacity
from locmoe_ops.capacity.delta import (
    STATISTICS,
    CosineHistogram,
    TokenPairCosines,
    as_delta,
    cosines,
    measure_delta,
    own_cosines,
    row_statistics,
    token_pair_cosines,
)
from locmoe_ops.capacity.factor import capacity_by_factor, factor_of_slots
from locmoe_ops.capacity.policy import AdaptiveCapacity, capacity_buckets, choose_bucket, slots_from_bound

__all__ = [
    "FORMS",
    "STATISTICS",
    "AdaptiveCapacity",
    "CosineHistogram",
    "TokenPairCosines",
    "angle_probability",
    "as_delta",
    "capacity_buckets",
    "capacity_by_factor",
    "choose_bucket",
    "cosines",
    "factor_of_slots",
    "measure_delta",
    "minimum_capacity",
    "own_cosines",
    "row_statistics",
    "slots_from_bound",
    "token_pair_cosines",
]
