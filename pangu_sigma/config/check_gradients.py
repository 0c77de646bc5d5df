"""Checks of how gradients are summed over data-parallel ranks: `parallel.reduce_precision`, `parallel.bucket_mb`. What
chips rule out is in `check_chip`.
"""

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.config.schema import Config


def check_gradients(config: Config, topology: Topology) -> None:
    """Checks these keys against the rest of the configuration and the ranks of the job.

    Raises:
        InputError: a key has no effect, or asks for what cannot be had; names it, the reason and what is expected.
    """
    parallel, alone = config.parallel, topology.data == 1
    if parallel.bucket_mb is not None:
        found = f"parallel.bucket_mb is {parallel.bucket_mb}"
        if not parallel.overlap_gradients:
            raise InputError(f"{found} with parallel.overlap_gradients false, which does not use it; expected null")
        if alone:
            raise InputError(f"{found} with one data-parallel rank, which sums with nobody; expected null")
    if parallel.reduce_precision == "fp32":
        return
    found, precision = f"parallel.reduce_precision is {parallel.reduce_precision}", config.runtime.precision
    if parallel.reduce_precision != precision:
        other = f" or {precision}" if precision != "fp32" else ""
        raise InputError(
            f"{found} with runtime.precision {precision}, in which gradients are made; expected fp32{other}"
        )
    if alone:
        raise InputError(f"{found} with one data-parallel rank, which sums with nobody; expected fp32")
    if parallel.all_to_all == "gathered":
        raise InputError(
            f"{found} with parallel.all_to_all gathered: a sum in float32 of what travels in half precision is made of "
            "an all-to-all, and gathered it would send more than it saves; expected fp32, or parallel.all_to_all native"
        )
