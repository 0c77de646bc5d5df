"""What a job asks for that its Ascend chip does not have or forbids: a configuration against the table of
`pangu_sigma.config.chips`.
"""

from dataclasses import replace
from typing import Optional

from locmoe_ops.errors import InputError
from pangu_sigma.config.ascend import resolve_runtime
from pangu_sigma.config.chips import CHIPS
from pangu_sigma.config.schema import Config


def with_chip(config: Config, chip: Optional[str], told_by: str) -> Config:
    """The configuration with `runtime.chip` as found; unchanged off Ascend.

    Args:
        config: of the job.
        chip: a name of `CHIPS`; None: nothing was found.
        told_by: who says so, for the message.

    Raises:
        InputError: the configuration names another chip.
    """
    named = config.runtime.chip
    if chip is None or resolve_runtime(config).runtime.device != "ascend":
        return config
    if named not in ("auto", chip):
        raise InputError(f"runtime.chip is {named}, but {told_by} is {chip}; expected the same, or auto")
    return replace(config, runtime=replace(config.runtime, chip=chip))


def check_chip(config: Config) -> None:
    """Checks what the configuration asks of its chip; nothing where `runtime.chip` is auto, which nobody has resolved.

    Raises:
        InputError: the chip has no such thing; names the key, the rule and a way out.
    """
    name, runtime = config.runtime.chip, config.runtime
    if name == "auto":
        return
    chip = CHIPS[name]
    if runtime.precision not in chip.precisions.value:
        raise InputError(
            f"runtime.precision is {runtime.precision} with runtime.chip {name}, which has none; expected "
            f"{' or '.join(chip.precisions.value)}"
        )
    timeout, (low, high) = runtime.hccl.exec_timeout, chip.exec_timeout.value
    if timeout is not None and not low <= timeout <= high:
        raise InputError(
            f"runtime.hccl.exec_timeout is {timeout} with runtime.chip {name}; expected {low} to {high} seconds"
        )
