"""A job that is started again from its newest whole checkpoint when it fails."""

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable, Optional

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.locate import TRAINING, read_configuration
from pangu_sigma.launcher.request import LaunchRequest
from pangu_sigma.launcher.signals import Signals
from pangu_sigma.metrics.perplexity import DIVERGED
from pangu_sigma.runtime.reporting import BAD_INPUT, SUCCESS, append_line
from pangu_sigma.runtime.strict_json import read_object

MAX_RESTARTS, BACK_OFF_S, LONGEST_WAIT_S = 5, 10, 300
_RESUME = "checkpoint.resume="
_POLL_S = 0.2
_FINAL = (SUCCESS, BAD_INPUT, 130, 143)  # the last two: interrupted, and told to end, of a node's own accord

Attempt = Callable[[LaunchRequest, Signals], int]


@dataclass(frozen=True)
class Supervision:
    """How often a job is started again.

    Attributes:
        max_restarts: without a new checkpoint between them.
        back_off: seconds before the first of these; twice as long before each further one, up to `LONGEST_WAIT_S`.
    """

    max_restarts: int = MAX_RESTARTS
    back_off: int = BACK_OFF_S


def supervise(request: LaunchRequest, supervision: Supervision, attempt: Attempt) -> int:
    """Makes attempts at a job until one ends well, or another would not; returns the last one's exit status.

    Bad input and a run that diverged, which would fail again, and a job that was told to end are not tried again.

    Args:
        request: the job.
        supervision: how often.
        attempt: runs it once.

    Raises:
        InputError: the job cannot be started again from where it was.
    """
    output = _output_of(request)
    resuming = replace(
        request, command=replace(request.command, overrides=(*request.command.overrides, f"{_RESUME}auto"))
    )
    failures, wait, before = 0, supervision.back_off, newest_step(output)
    with Signals(interrupt_stops=True) as signals:
        while True:
            started, summarised = time.monotonic(), _summary_time(output)
            status = attempt(resuming, signals)
            if signals.status is not None or status in _FINAL:
                # Told to end, a job may have ended well.
                return status if status == SUCCESS or signals.status is None else signals.status
            after = newest_step(output)
            now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            append_line(output / "restarts.log", now, str(status), f"{time.monotonic() - started:.0f}", str(after))
            ended = read_object(output / "summary.json").get("status")
            if _summary_time(output) != summarised and ended == DIVERGED:  # the same steps give the same numbers
                _say("the run diverged, and would again: not started again")
                return status
            if after > before:
                failures, wait, before = 0, supervision.back_off, after
            failures += 1
            if failures > supervision.max_restarts:
                _say(f"giving up: status {status}, and no new checkpoint in {supervision.max_restarts} restarts")
                return status
            _say(
                f"the job ended with status {status}; again from {f'step {after}' if after >= 0 else 'the start'} in "
                f"{wait} s (restart {failures} of at most {supervision.max_restarts} without a new checkpoint)"
            )
            _pause(wait, signals)
            if signals.status is not None:
                return signals.status
            wait = min(2 * wait, LONGEST_WAIT_S)


def newest_step(output: Path) -> int:
    """The step of the newest checkpoint of a run; -1: there is none."""
    names = [path.name[len("step_") :] for path in (output / "checkpoints").glob("step_*")]
    return max((int(name) for name in names if name.isascii() and name.isdigit()), default=-1)


def _output_of(request: LaunchRequest) -> Path:
    """The run's folder, which restarts need."""
    command = request.command
    for option, is_given in (
        ("--dry-run", request.dry_run),
        ("--generate", command.generate),
        ("--bench", command.bench),
    ):
        if is_given:
            raise InputError(f"{option}: is not training; expected it without --supervise")
    for override in command.overrides:
        if override.startswith(_RESUME):
            raise InputError(f"--set {override}: given where restarts need {_RESUME}auto")
    config = read_configuration(command.config, command.overrides, TRAINING)
    if config.checkpoint.interval == 0:
        raise InputError(
            "checkpoint.interval is 0, which leaves nothing to resume from before the end; expected steps between "
            "checkpoints"
        )
    output = Path(config.train.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {output} ({error.strerror}); expected a writable place") from None
    return output


def _summary_time(output: Path) -> Optional[int]:
    with suppress(OSError):
        return os.stat(output / "summary.json").st_mtime_ns
    return None


def _pause(seconds: float, signals: Signals) -> None:
    """Waits, but for no longer than until a signal comes."""
    until = time.monotonic() + seconds
    while signals.status is None and time.monotonic() < until:
        time.sleep(min(_POLL_S, max(0.0, until - time.monotonic())))


def _say(text: str) -> None:
    print(f"pangu-sigma launch: {text}", file=sys.stderr, flush=True)
