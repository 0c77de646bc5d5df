"""When the host reads the numbers of the steps that it has launched: `train.read_results`.

A graph's call returns on Ascend when its kernels are launched; the host waits for the device where it reads a result.
Read after every step, the device then waits for the host, which prepares and feeds the next batch. Read later, it does
not (compiled, not run on a device). On CPU a call returns when all is computed, and nothing is gained.

What a step computes does not depend on when it is read: overflows and the loss scale are the graph's own affair. But
what the host decides by a step's numbers, or changes in the network, it decides or changes when all steps up to there
are read.
"""

from typing import Any, Dict, NamedTuple, Optional, Sequence

from pangu_sigma.config.derived import last_step
from pangu_sigma.config.schema import Config
from pangu_sigma.train.metrics import HostCounters
from pangu_sigma.train.schedule import Ramp
from pangu_sigma.train.update import StepOutputs


class LaunchedStep(NamedTuple):
    """A step whose graphs have been launched, and what the host knew of it then.

    Attributes:
        step: its number, from 1.
        outputs: to be read.
        started: moment of its beginning, by `time.perf_counter`.
        own: this rank's counters of it; `step_s` is how long its launch took.
        learning_rate: of the step.
        scheduled: metrics of values that follow schedules.
        slots: metrics of measured slots.
        memory: metrics of memory.
    """

    step: int
    outputs: StepOutputs
    started: float
    own: HostCounters
    learning_rate: float
    scheduled: Dict[str, float]
    slots: Dict[str, Any]
    memory: Dict[str, float]


class ReadingRule:
    """How many of the launched steps are read once a further one is.

    All are read before a validation, a checkpoint and the end; before a value of the network that follows a schedule
    changes, which a step that is still computing may not see; and around each profiled step.

    Args:
        config: of the run.
        ramps: of the values that follow a schedule; None: of one that does not.

    Attributes:
        most: steps that are read at once, at most.
    """

    def __init__(self, config: Config, ramps: Sequence[Optional[Ramp]]) -> None:
        train = config.train
        self._rule = train.read_results
        self._last = last_step(config)
        intervals = [train.eval_interval, config.checkpoint.interval]
        intervals += [train.log_interval] if self._rule == "log_interval" else []
        self._intervals = [interval for interval in intervals if interval]
        self._ramps = [ramp for ramp in ramps if ramp is not None]
        self._profiled = range(train.profile[0] - 1, train.profile[1] + 1) if train.profile else range(0)
        self.most = {"each_step": 1, "next_step": 2, "log_interval": train.log_interval}[self._rule]

    def count(self, step: int, waiting: int) -> int:
        """How many are read, the oldest, of `waiting` ones, of which `step` is the last."""
        due = step == self._last or any(step % interval == 0 for interval in self._intervals)
        due |= step in self._profiled or any(ramp.at(step) != ramp.at(step + 1) for ramp in self._ramps)
        if self._rule == "each_step" or due:
            return waiting
        return waiting - 1 if self._rule == "next_step" else 0
