"""`train.profile`: where the time of some steps goes, on every rank.

On Ascend MindSpore's profiler records them, and leaves a folder of traces for each rank, which
`pangu_sigma.report.step_trace` reads (documented, not tried). On CPU this project's own timers, which run anyway, are
written by rank: the run's metrics only have their means.
"""

from pathlib import Path
from typing import Any, Dict, List, Optional

from pangu_sigma.config.ascend import resolve_runtime
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.strict_json import dumps
from pangu_sigma.train.metrics import HostCounters, write_atomically

FOLDER = "profile"  # in the run directory


def rank_name(rank: int) -> str:
    """How the names of a rank's file and folders begin."""
    return f"rank_{rank}"


class StepProfile:
    """Records the steps that the configuration names, if any.

    1. `begin` before a step, `end` after it.
    2. What was recorded is written after the last of them, or by `close` where the run ends before.
    """

    def __init__(self, config: Config, rank: int) -> None:
        self._steps = range(config.train.profile[0], config.train.profile[1] + 1) if config.train.profile else range(0)
        self._folder = Path(config.train.output_dir) / FOLDER
        self._rank = rank
        self._by_profiler = resolve_runtime(config).runtime.device == "ascend"
        self._profiler: Optional[Any] = None
        self._splits: List[Dict[str, float]] = []

    def begin(self, step: int) -> None:
        if step in self._steps and self._by_profiler and self._profiler is None:
            self._profiler = ascend_profiler(self._folder, self._rank, self._steps.stop - step)
            self._profiler.start()

    def end(self, step: int, own: HostCounters) -> None:
        """`own`: this rank's counters of the step."""
        if step not in self._steps:
            return
        if self._profiler is not None:
            self._profiler.step()
        else:
            self._splits.append({"step": step, **split(own)})
        if step == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Writes what was recorded and not written yet."""
        if self._profiler is not None:
            self._profiler.stop()
        elif self._splits:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(
                self._folder / f"{rank_name(self._rank)}.json", dumps({"steps": self._splits}, indent=1) + "\n"
            )
        self._profiler, self._splits, self._steps = None, [], range(0)


def split(own: HostCounters) -> Dict[str, float]:
    """Seconds of a rank's step: step = compute + communication + idle - overlapped."""
    communication, idle, overlapped = own.total[:3]
    return {
        "compute(s)": own.step_s - communication - idle + overlapped,
        "communication(s)": communication,
        "overlapped(s)": overlapped,
        "idle(s)": idle,
    }


def ascend_profiler(folder: Path, rank: int, steps: int) -> Any:
    """MindSpore's profiler, which writes traces when it is stopped or has seen `steps` steps, in `folder` by `rank`."""
    from mindspore import profiler

    folder.mkdir(parents=True, exist_ok=True)
    return profiler.profile(
        activities=[profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.NPU],
        schedule=profiler.schedule(wait=0, warmup=0, active=steps, repeat=1, skip_first=0),
        on_trace_ready=profiler.tensorboard_trace_handler(str(folder), rank_name(rank)),
        start_profile=False,
    )
