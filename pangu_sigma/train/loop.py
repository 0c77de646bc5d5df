"""The training loop: steps, validation, checkpoints, and what rank 0 prints and writes."""

import logging
import signal
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import FrameType, TracebackType
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Type

import numpy as np

from pangu_sigma.checkpoint.header import training_header
from pangu_sigma.checkpoint.state import RANKS, RankLocation, local_tensors
from pangu_sigma.checkpoint.writer import CheckpointWriter
from pangu_sigma.config.derived import last_step, layer_routers, router_names, tokens_per_step
from pangu_sigma.config.schema import Config, RouterConfig
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.loader import BatchLoader
from pangu_sigma.metrics.conditions import LOCALITY_WEIGHT, RunFacts, leaves_undecided
from pangu_sigma.metrics.definitions import left_out
from pangu_sigma.metrics.window import measured
from pangu_sigma.model.capacity_rules import resolve_layout
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.runtime.messages import log as messages
from pangu_sigma.runtime.progress import progress_bar, waiting_for
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.train.console import console_line
from pangu_sigma.train.divergence import DivergenceWatch, Verdict
from pangu_sigma.train.engine import StepResult, TrainEngine
from pangu_sigma.train.metrics import (
    CounterClock,
    HostCounters,
    MeasuredLayers,
    MetricsLog,
    host_metrics,
    loss_metrics,
    routing_metrics,
    sum_counters,
)
from pangu_sigma.train.profile import StepProfile
from pangu_sigma.train.reading import LaunchedStep, ReadingRule
from pangu_sigma.train.schedule import (
    Ramp,
    context_ramp,
    expert_choice_ramp,
    learning_rate,
    locality_bias_ramp,
    locality_loss_ramp,
)
from pangu_sigma.train.statistics import check_row_limit
from pangu_sigma.train.straggler import Stragglers, straggler_line, straggler_metrics
from pangu_sigma.train.utilisation import Utilisation
from pangu_sigma.train.validation import Validation


class StopRequest:
    """SIGTERM as a request: the run ends after the step that it is in, or after the one after which steps are next read
    (`train.read_results`), with a checkpoint, and exit status 0.

    Notes the signal while it is entered; a second one ends the process as it would have without this. Ranks may be
    signalled at different moments, or only one of them: they agree through the sums of each step
    (`HostCounters.stops`).

    Attributes:
        requested: whether the signal came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python lets no other set a handler
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, self._before)


class Scheduled:
    """A value of the network that follows a schedule.

    Args:
        ramp: the schedule; None: there is no such value. set_value: gives it to the network.
    """

    def __init__(self, ramp: Optional[Ramp], set_value: Callable[[float], None]) -> None:
        self._ramp, self._set_value = ramp, set_value
        self._last: Optional[float] = None

    def follow(self, step: int) -> Optional[float]:
        """The value of optimizer step `step`, counted from 1; the network is given it where it is another than the last
        one.
        """
        if self._ramp is None:
            return None
        value = self._ramp.at(step)
        if value != self._last:
            self._set_value(value)
            self._last = value
        return value


@dataclass(frozen=True)
class Saving:
    """What checkpoints are written with.

    Attributes:
        writer: of this run's checkpoints.
        place: of this rank among the writers.
        data: that ids refer to.
    """

    writer: CheckpointWriter
    place: RankLocation
    data: PreparedData


class ReadStep(NamedTuple):
    """A step whose results the host has read.

    Attributes:
        step: its number. sums: see `StepResult`. record: its metrics.
    """

    step: int
    sums: Dict[str, np.ndarray]
    record: Dict[str, Any]


def _ramp_of(config: Config, wanted: Callable[[RouterConfig], Optional[Ramp]]) -> Optional[Ramp]:
    """What `wanted` says of the first layer's router that has such a value; the checks see to it that all others have
    the same.
    """
    return next((ramp for ramp in map(wanted, layer_routers(config)) if ramp is not None), None)


def _measured_layers(config: Config) -> MeasuredLayers:
    routers = layer_routers(config)
    mu = tuple(router.locality_loss.initial_weight or getattr(router.own, LOCALITY_WEIGHT, 0.0) for router in routers)
    return MeasuredLayers(mu, tuple(map(leaves_undecided, routers)))


class TrainingLoop:
    """Runs optimizer steps `start` + 1 to the last one.

    1. A step: its capacity, micro-batches, update; its metrics, when they are read (see `pangu_sigma.train.reading`).
    2. Validation every `train.eval_interval` steps and after the last one: as trained, and with the local term off, if
       there is one.
    3. Checkpoint every `checkpoint.interval` steps and after the last one, written while later steps run; an error of
       writing it ends the job before the next step. The weights after a step with an unusable loss are not kept.
    4. An end where the run has diverged (see `pangu_sigma.train.divergence`), after the same step on all ranks. Of
       steps that were launched after it nothing is kept.

    `train.stop_after` leaves what a run cut off there would have left. Where a rank is requested to stop, all end after
    the same step, with a checkpoint.

    Args:
        config, runtime: of the run, and this rank.
        engine: what is trained.
        loader: of this rank's batches.
        saving: what checkpoints are written with.
        stop: the request to stop, of this rank.

    Attributes:
        stopped: whether the run ended because of a request.
        saved_step: step of the last checkpoint that this run wrote, 0: none.
        verdict: how it diverged, if it did.
    """

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        engine: TrainEngine,
        loader: BatchLoader,
        saving: Saving,
        stop: StopRequest,
    ) -> None:
        self.config = config
        self.runtime = runtime
        self.engine = engine
        self.loader = loader
        self.saving = saving
        self.stopped = False
        self.saved_step = 0
        self.verdict: Optional[Verdict] = None
        self._divergence = DivergenceWatch(config.train.divergence_patience, int(engine.loss_scale.skipped.asnumpy()))
        self._stop = stop
        self._stops = 0  # ranks with a request, added up over the steps that were read
        data = saving.data
        self.rows_in_training = sum(data.rows("train", domain) for domain in range(len(data.domains)))
        self.clock = CounterClock(runtime.collectives)
        self.host_sum = HostSum(runtime.collectives, "metrics/counters")
        counted = runtime.collectives.bytes_sent().counted
        self.stragglers = Stragglers(runtime.rank, runtime.world_size, config.train.log_interval, counted)
        layout = resolve_layout(config, runtime.topology)
        self.left_out = left_out(RunFacts(config, runtime.topology, layout, runtime.chip is not None, counted))
        self.profile = StepProfile(config, runtime.rank)
        self.utilisation = Utilisation(config, runtime.chip, runtime.world_size, engine.words.vocab_size)
        followed = (locality_bias_ramp, locality_loss_ramp, context_ramp, expert_choice_ramp)
        term, loss, context, late = ramps = [_ramp_of(config, ramp) for ramp in followed]
        self._schedules = {
            "moe/local_strength": Scheduled(term, engine.set_locality_bias),
            "moe/locality_loss_weight": Scheduled(loss, engine.set_locality_loss_weight),
            "moe/context_weight": Scheduled(context, engine.set_context_weight),
            "moe/expert_choice": Scheduled(late, engine.set_expert_choice),
        }
        self._measured = _measured_layers(config)
        self._reading = ReadingRule(config, ramps)
        self._waiting: List[LaunchedStep] = []
        self._read_at = 0.0  # when steps were last read
        self._validated = False
        rows = loader.validation() if config.train.eval_rows else []
        self.validation = Validation(engine, runtime.topology.tensor, rows, self.host_sum)

    def run(self, start: int, log: "MetricsLog | None") -> None:
        """Trains from step `start` (0: anew). `log` is None on every rank but the first."""
        train = self.config.train
        last = last_step(self.config)
        first: Optional[LaunchedStep] = None
        if start < last:
            self.saving.writer.check()
            with waiting_for("compiling the step") if self.config.runtime.mode == "graph" else nullcontext():
                first = self._launch(start + 1)
        # Begun now: compiling is no step, and does not count towards the time that is left.
        with progress_bar(train.steps, router_names(self.config), initial=start, unit="step") as bar:
            for step in range(start + 1, last + 1):
                self.saving.writer.check()
                self._waiting.append(first or self._launch(step))
                first = None
                bar.update()
                read = self._read(self._reading.count(step, len(self._waiting)))
                self.stopped = self._stops > 0 and step < last
                if self.stopped:
                    read += self._read(len(self._waiting))
                self._note(read, step, log)
                due = self.stopped or self._is_due(step, self.config.checkpoint.interval)
                if due and self.verdict is None and self._divergence.is_sound:
                    self._save(step)
                if self.stopped or self.verdict is not None:
                    self.profile.close()
                    break

    def _launch(self, step: int) -> LaunchedStep:
        config = self.config
        batches = self.loader.step(step - 1)
        rate = learning_rate(config.optimizer, config.train.steps, step)
        followed = {name: one.follow(step) for name, one in self._schedules.items()}
        self.profile.begin(step)
        self.utilisation.begin()
        self.clock.restart()
        started = time.perf_counter()
        self.engine.capacity.prepare(step, self.loader.step)
        self.engine.local_share.prepare(step, self.loader.step)
        outputs = self.engine.launch_step(batches, step, rate)
        return LaunchedStep(
            step,
            outputs,
            started,
            self.clock.elapsed(time.perf_counter() - started),
            rate,
            {name: value for name, value in followed.items() if value is not None},
            {**self.engine.capacity.metrics(), **self.engine.local_share.metrics()},
            self.utilisation.memory(),
        )

    def _read(self, count: int) -> List["ReadStep"]:
        """The `count` oldest of the steps that wait; every rank must call it."""
        chosen, self._waiting = self._waiting[:count], self._waiting[count:]
        if not chosen:
            return []
        results = [self.engine.read_step(one.outputs) for one in chosen]
        now = time.perf_counter()
        mean_s = (now - max(chosen[0].started, self._read_at)) / count
        self._read_at = now
        own_counters = []
        for one in chosen:
            step_s = one.own.step_s if self.runtime.chip is None else mean_s  # on CPU a launch is the step
            own = one.own._replace(step_s=step_s, stops=int(self._stop.requested))
            self.profile.end(one.step, own)
            own_counters.append(self.stragglers.note(own, one.step))
        totals = sum_counters(self.host_sum, own_counters, self._reading.most)
        self._stops += sum(total.stops for total in totals)
        return [
            ReadStep(one.step, result.sums, self._record(one, result, own.step_s, total))
            for one, result, own, total in zip(chosen, results, own_counters, totals)
        ]

    def _record(self, one: LaunchedStep, result: StepResult, step_s: float, total: HostCounters) -> Dict[str, Any]:
        config, tokens = self.config, tokens_per_step(self.config)
        found = {
            "progress/step": one.step,
            "progress/epoch": one.step * config.train.global_batch_size / self.rows_in_training,
            "progress/tokens": one.step * tokens,
            **loss_metrics(result.sums),
            "optim/learning_rate": one.learning_rate,
            "optim/grad_norm": result.grad_norm,
            "optim/loss_scale": result.loss_scale,
            "optim/skipped_steps": result.skipped_steps,
            **routing_metrics(result.sums, one.scheduled.get("moe/locality_loss_weight"), self._measured, tokens),
            **one.scheduled,
            **one.slots,
            "time/unix": round(time.time(), 3),
            **host_metrics(total, self.runtime.world_size, step_s, tokens),
            **one.memory,
            **self.utilisation.mfu(step_s),
            **straggler_metrics(total.compute_by_rank),
        }
        return {name: value for name, value in found.items() if name not in self.left_out}

    def _note(self, read: List["ReadStep"], step: int, log: "MetricsLog | None") -> None:
        """Judges and writes the steps that were `read` after `step` was launched, up to one that ends the run."""
        train, limit = self.config.train, self.config.moe.dispatch.ragged_limit
        for one in read:
            check_row_limit(one.sums, limit, f"step {one.step}")
            if one.step == step and self._is_due(step, train.eval_interval):
                one.record.update(self._validate())
            self.verdict = self._divergence.note(one.record) or (
                self._divergence.at_end(one.record) if one.step == train.steps else None
            )
            if log is not None:
                log.write(one.record)
                self._report(log)
            if self.verdict is not None:
                return

    def _validate(self) -> Dict[str, Optional[float]]:
        if self._validated or not self.validation.batches or self.config.runtime.mode != "graph":
            return self.validation.measure()
        self._validated = True
        with waiting_for("compiling the validation"):
            return self.validation.measure()

    def _is_due(self, step: int, interval: int) -> bool:
        return step == self.config.train.steps or bool(interval and step % interval == 0)

    def _save(self, step: int) -> None:
        state, saving = self.engine.saved_state(), self.saving
        header = training_header(
            self.config,
            resolve_layout(self.config, self.runtime.topology),
            saving.data,
            self.engine.words.vocab_size,
            step,
            state,
        )
        # Ranks that the rows were spread over: `eval --as-trained` needs them, and a given `moe.logical_topology` does
        # not tell.
        header = replace(header, sampler={**header.sampler, RANKS: self.runtime.topology.data})
        saving.writer.save(header, local_tensors(state, saving.place))
        self.saved_step = step

    def _report(self, log: MetricsLog) -> None:
        """The step's line: a message where it is due, and else for `--log-level debug`."""
        record = log.records[-1]
        due = self._is_due(record["progress/step"], self.config.train.log_interval)
        level = logging.INFO if "valid/perplexity" in record or self.verdict or due else logging.DEBUG
        if messages.isEnabledFor(level):
            messages.log(level, "%s", console_line(record, self.config.train.steps, measured(log.records)))
        slow = straggler_line(record, self.config.train.straggler_margin)
        if slow:
            messages.info("%s", slow)
