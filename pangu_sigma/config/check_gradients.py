"""Checks of how gradients are summed: over micro-batches (`runtime.fused.accumulate`) and over data-parallel ranks
(`parallel.reduce_precision`, `parallel.bucket_mb`); and of the form of their update (`optimizer.flat`). What chips rule
out is in `check_chip`.
"""

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.config.derived import micro_batches_per_step
from pangu_sigma.config.schema import Config
from pangu_sigma.config.strict_yaml import spelled


def check_gradients(config: Config, topology: Topology) -> None:
    """Checks these keys against the rest of the configuration and the ranks of the job.

    Raises:
        InputError: a key has no effect, or asks for what cannot be had; names it, the reason and what is expected.
    """
    _check_accumulate(config, topology)
    parallel, alone = config.parallel, topology.data == 1
    if config.optimizer.flat is not None and config.optimizer.zero != "none" and not alone:
        raise InputError(
            f"optimizer.flat is {spelled(config.optimizer.flat)} with optimizer.zero {config.optimizer.zero}, where "
            "each rank's part of all parameters is in vectors; expected null"
        )
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


def _check_accumulate(config: Config, topology: Topology) -> None:
    if not config.runtime.fused.accumulate:
        return
    found = "runtime.fused.accumulate is true"
    if config.runtime.precision == "fp32":
        raise InputError(f"{found} with runtime.precision fp32, which the kernel does not take; expected fp16 or bf16")
    if config.runtime.mode == "pynative" or config.runtime.jit_level == "O2":
        where = "runtime.mode pynative" if config.runtime.mode == "pynative" else "runtime.jit_level O2"
        raise InputError(f"{found} with {where}, where MindSpore has no such pass; expected false, or graphs (O0, O1)")
    if micro_batches_per_step(config, topology.data) == 1:
        raise InputError(
            f"{found} in a step of one micro-batch (train.global_batch_size {config.train.global_batch_size}, "
            f"{topology.data} data-parallel ranks), where nothing is added up; expected false, or a smaller "
            "train.micro_batch_size"
        )
