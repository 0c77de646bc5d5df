"""What differs between Ascend chips: every rule that depends on the chip, in one table, each with its source.

910A is the Atlas training series, the device of the PanGu-Sigma and LocMoE papers; 910B is the Atlas A2, 910C the
Atlas A3. Nothing here was run on a device: the rules are what the sources say. Needs no MindSpore.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, NamedTuple, Optional, Sequence


class ChipRule(NamedTuple):
    """A value of the table, and which document or program says so."""

    value: Any
    source: str


@dataclass(frozen=True)
class Chip:
    """The rules of one chip; each attribute is a `ChipRule` of the value described.

    Attributes:
        soc_version: the chip's name in MindSpore, `MSContext.get_ascend_soc_version()`.
        models: its names in `npu-smi info`, in part or whole.
        hardware: its file of configs/hardware; None: none is shipped.
        always_saturates: whether Inf always becomes the largest number and NaN 0, so that the status register alone
            tells of an overflow; False: the environment may ask for it.
        cluster: devices of a cluster, where HCCL's all-to-all is bound to whole clusters; None: it is not.
        fused: keys of `runtime.fused` whose kernels it has.
        precisions: of `runtime.precision`.
        bucket_mb: of float32 gradients in a message that leaves during the backward pass.
        exec_timeout, rdma_timeout: smallest and largest HCCL_EXEC_TIMEOUT and HCCL_RDMA_TIMEOUT.
    """

    soc_version: ChipRule
    models: ChipRule
    hardware: ChipRule
    always_saturates: ChipRule
    cluster: ChipRule
    fused: ChipRule
    precisions: ChipRule
    bucket_mb: ChipRule
    exec_timeout: ChipRule
    rdma_timeout: ChipRule


_SOC = "MindSpore 2.10: the names that libmindspore_core.so knows"
_SMI = "Huawei: column Name of npu-smi info"
_FILE = "configs/hardware"
_OVERFLOW = "CANN 8.0 and Ascend PyTorch 6.0, INF_NAN_MODE_ENABLE; MindSpore 2.10, amp.py: _all_finite"
_ALL_TO_ALL = "CANN 8.0, HCCL API: HcclAlltoAll and HcclAlltoAllV, Constraints"
_FUSED = (
    "CANN: FlashAttentionScore, GroupedMatmul and MoeTokenPermute are kernels of Atlas A2 and A3; so is "
    "InplaceMatmulAdd by MindSpore's documentation of ops.matmul_add_"
)
_PRECISION = "CANN 8.5, ToBfloat16 and the data types of HcclAlltoAll: not on Atlas training products"
_BUCKET = "assumed: at 25 GB/s a message of 32 MB is under way for 1.3 ms, against some 0.1 ms to start it"
_EXEC_TIMEOUT = "CANN 8.5, Environment Variables: HCCL_EXEC_TIMEOUT"
_RDMA_TIMEOUT = "CANN 8.5, Environment Variables: HCCL_RDMA_TIMEOUT"

_PRECISIONS = ("fp32", "fp16", "bf16")
_KERNELS = ("attention", "experts", "permute", "accumulate")
LARGEST_IN_PRODUCT = 10_000_000  # numbers of a gradient, in MindSpore's pass (matmul_assignadd_fusion.cc: shape_limit)
CHIPS: Mapping[str, Chip] = {
    "910a": Chip(
        soc_version=ChipRule("ascend910", _SOC),
        models=ChipRule(("910A", "910ProA", "910ProB"), _SMI),
        hardware=ChipRule("910a", _FILE),
        always_saturates=ChipRule(True, _OVERFLOW),
        cluster=ChipRule(4, _ALL_TO_ALL),
        fused=ChipRule((), _FUSED),
        precisions=ChipRule(("fp32", "fp16"), _PRECISION),
        bucket_mb=ChipRule(32.0, _BUCKET),
        exec_timeout=ChipRule((1, 17340), _EXEC_TIMEOUT),
        rdma_timeout=ChipRule((5, 24), _RDMA_TIMEOUT),
    ),
    "910b": Chip(
        soc_version=ChipRule("ascend910b", _SOC),
        models=ChipRule(("910B",), _SMI),
        hardware=ChipRule("910b", _FILE),
        always_saturates=ChipRule(False, _OVERFLOW),
        cluster=ChipRule(None, _ALL_TO_ALL),
        fused=ChipRule(_KERNELS, _FUSED),
        precisions=ChipRule(_PRECISIONS, _PRECISION),
        bucket_mb=ChipRule(32.0, _BUCKET),
        exec_timeout=ChipRule((0, 2147483647), _EXEC_TIMEOUT),
        rdma_timeout=ChipRule((5, 20), _RDMA_TIMEOUT),
    ),
    "910c": Chip(
        soc_version=ChipRule("ascend910_93", _SOC),
        models=ChipRule(("910_93", "910C"), _SMI),
        hardware=ChipRule(None, _FILE),
        always_saturates=ChipRule(False, _OVERFLOW),
        cluster=ChipRule(None, _ALL_TO_ALL),
        fused=ChipRule(_KERNELS, _FUSED),
        precisions=ChipRule(_PRECISIONS, _PRECISION),
        bucket_mb=ChipRule(32.0, _BUCKET),
        exec_timeout=ChipRule((0, 2147483647), _EXEC_TIMEOUT),
        rdma_timeout=ChipRule((5, 20), _RDMA_TIMEOUT),
    ),
}
DEFAULT_CHIP = "910b"  # of plans and audits that nothing tells the chip of
_DEVICES_PER_SERVER = 8  # of 910A servers, two clusters of four


def chip_of_soc(version: str) -> Optional[str]:
    """The chip by MindSpore's name for it; None: not in the table."""
    return next((name for name, chip in CHIPS.items() if chip.soc_version.value == version.lower()), None)


def chip_of_model(model: str) -> Optional[str]:
    """The chip by its name in `npu-smi info`; None: not in the table."""
    return next((name for name, chip in CHIPS.items() if any(part in model for part in chip.models.value)), None)


def known_chip(named: str) -> Optional[str]:
    """`runtime.chip`, which is `named`, as a name of `CHIPS`; None where it is auto, and nobody has resolved it."""
    return None if named == "auto" else named


def saturates(chip: Optional[str], environment: Mapping[str, str]) -> bool:
    """Whether Inf and NaN do not exist on the chip, so that only its status register tells of an overflow.

    Args:
        chip: a name of `CHIPS`; None: not an Ascend chip, or not known.
        environment: of the process; MS_ASCEND_CHECK_OVERFLOW_MODE chooses where there is a choice.
    """
    if chip is None:
        return False
    asked: bool = environment.get("MS_ASCEND_CHECK_OVERFLOW_MODE") == "SATURATION_MODE"
    return asked or bool(CHIPS[chip].always_saturates.value)


def reads_status(chip: Optional[str], precision: str, environment: Mapping[str, str]) -> bool:
    """Whether a step asks the status register of its device for overflows: where the loss is scaled, and an overflow
    leaves no other trace.

    Args:
        chip, environment: as in `saturates`.
        precision: `runtime.precision`.
    """
    return precision == "fp16" and saturates(chip, environment)


def all_to_all_fault(chip: str, ranks: Sequence[int], ranks_per_node: int) -> Optional[str]:
    """Which part of HCCL's rule on all-to-all the group breaks on the chip; None: none.

    Devices 0 to 3 and 4 to 7 of a 910A server are its clusters. One or two ranks in a server must lie in one cluster;
    four or eight in a server must be whole clusters; over several servers there must be whole clusters, the same ones
    in every server. A node of four ranks is taken for a cluster of a server of eight, its half.

    Args:
        chip: a name of `CHIPS`.
        ranks: of the group, by their numbers in the job, whose ranks fill servers in the order of devices.
        ranks_per_node: of the job.
    """
    size = CHIPS[chip].cluster.value
    if size is None or len(ranks) < 2:
        return None
    per_server = _DEVICES_PER_SERVER if ranks_per_node == size else ranks_per_node
    devices: dict[int, list[int]] = {}  # of every server that has ranks of the group
    for rank in sorted(ranks):
        devices.setdefault(rank // per_server, []).append(rank % per_server)
    parts = {tuple(found) for found in devices.values()}
    clusters = {device // size for found in parts for device in found}
    if len(devices) == 1 and len(ranks) == 2:
        return None if len(clusters) == 1 else f"two ranks of one server must lie in one cluster of {size} devices"
    if len(parts) > 1:
        return "the same devices must take part in every server"
    whole = sorted(cluster * size + place for cluster in clusters for place in range(size))
    if sorted(next(iter(parts))) != whole:
        where = "a group over several servers" if len(devices) > 1 else "more than two ranks of one server"
        return f"{where} must be whole clusters of {size} devices (0 to 3, 4 to 7)"
    return None
