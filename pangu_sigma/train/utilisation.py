"""How far a step uses its devices: FLOP/s of the model over their peak, and the memory that it takes at its fullest."""

import resource
from typing import Dict, Optional

import mindspore as ms

from locmoe_ops.errors import InputError
from pangu_sigma.config.chips import CHIPS
from pangu_sigma.config.derived import tokens_per_step
from pangu_sigma.config.schema import Config
from pangu_sigma.planner.hardware import load_hardware
from pangu_sigma.planner.predict import step_flops

KIB = 1024  # Linux's unit of a process's memory


class Utilisation:
    """Of one rank's steps; `begin` each, then ask for its `memory` and `mfu`.

    Args:
        config: of the run.
        chip: of the devices, a name of `CHIPS`; None: there are none, and nothing is known of a peak.
        ranks: of the job, each with a device.
        vocab_size: rows of the tied head.
    """

    def __init__(self, config: Config, chip: Optional[str], ranks: int, vocab_size: int) -> None:
        self._on_device = chip is not None
        self._device_peak = 0.0  # of all steps so far
        peak = None if chip is None else peak_flops(chip, config.runtime.precision)
        flops = sum(step_flops(config, tokens_per_step(config), vocab_size).values())
        self._best_s = None if peak is None else flops / (peak * ranks)  # at the peak of all devices

    def begin(self) -> None:
        """What MindSpore calls the peak of its memory pool begins anew."""
        if self._on_device:
            ms.runtime.reset_peak_memory_stats()

    def memory(self) -> Dict[str, float]:
        """Of the step since `begin`, once it has been launched: the pool gives out memory then."""
        # psutil knows no peak on Linux; the standard library does, without a look into /proc.
        in_process = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB)
        if not self._on_device:
            return {"memory/peak(B)": in_process, "memory/process_peak(B)": in_process}
        of_step = float(ms.runtime.max_memory_allocated())
        self._device_peak = max(self._device_peak, of_step)
        return {
            "memory/peak(B)": self._device_peak,
            "memory/device_peak(B)": of_step,
            "memory/process_peak(B)": in_process,
        }

    def mfu(self, step_s: float) -> Dict[str, float]:
        """Of a step that took `step_s` seconds."""
        return {} if self._best_s is None else {"throughput/mfu": self._best_s / step_s}


def peak_flops(chip: str, precision: str) -> Optional[float]:
    """FLOP/s of a device of that `chip` in `precision`, by the shipped hardware file; None: none is shipped, or it has
    no such figure.
    """
    name: Optional[str] = CHIPS[chip].hardware.value
    if name is None:
        return None
    try:
        return load_hardware(name).peak_flops(precision)
    except InputError:  # no such figure; or a program without its files
        return None
