"""MindSpore's log level, from the environment, which it reads when it is imported.

On Ascend an operator without a kernel for the device runs on the CPU, with copies there and back, and nothing but a
line of level INFO of the module DEVICE says so (MindSpore's TryBackoffCpu; read in its source, not seen on a device).
Casts to a smaller type, which kernels ask for, are warnings. `pangu-sigma doctor CONFIG` looks for both in the logs of
ranks. With MS_DISABLE_KERNEL_BACKOFF=1 such an operator ends the job instead. The launcher sets the
same for msrun.
"""

import os
from typing import Mapping

ERRORS, WARNINGS = "3", "2"
DEVICE_MODULE = "{DEVICE:1}"  # level INFO
BACKOFF = "Try to use backoff CPU kernel, node:"  # how the line begins that tells of an operator on the CPU
REDUCED = "reduce precision from"  # how that of a cast goes on


def log_levels(on_device: bool) -> Mapping[str, str]:
    """What to set of the environment where it says nothing: errors alone, for warnings speak to MindSpore's developers;
    on a device also what a user may want to know of his operators.
    """
    return {"GLOG_v": WARNINGS, "MS_SUBMODULE_LOG_v": DEVICE_MODULE} if on_device else {"GLOG_v": ERRORS}


def set_log_level(on_device: bool) -> None:
    """Sets `log_levels`, before MindSpore is imported. `on_device`: whether this machine has Ascend devices."""
    for name, level in log_levels(on_device).items():
        os.environ.setdefault(name, level)
