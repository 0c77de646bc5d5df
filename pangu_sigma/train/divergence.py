"""When a run has diverged, and how it then ends.

A step is bad if its loss is not a number to go by (not finite, or so large that the perplexity is beyond float64), or
if its gradient overflowed, so that nothing was updated. `train.divergence_patience` such steps in a row end the run
with exit status 1, and so does a run whose last step leaves no usable loss, or that made no update at all.
"""

from dataclasses import dataclass, replace
from typing import Any, Dict, Mapping, Optional

from pangu_sigma.metrics.perplexity import DIVERGED, LARGEST_LOSS, is_usable
from pangu_sigma.runtime.strict_json import number


@dataclass(frozen=True)
class Verdict:
    """How a run diverged.

    Attributes:
        first_bad, last_step: the first and the last of its bad steps.
        last_good, last_loss: the last step with a usable loss, and that loss in nats a token; 0 and None: no step.
        skipped: whether the bad steps were skipped updates, under losses that were usable.
        validated: whether it was the last validation that showed it.
    """

    first_bad: int
    last_step: int
    last_good: int
    last_loss: Optional[float]
    skipped: bool = False
    validated: bool = False

    def is_sound(self, step: int) -> bool:
        """Whether a checkpoint of this step is from before: the step after it still had a usable loss, or only updates
        were skipped.
        """
        return self.skipped or step < self.last_good

    def metrics(self) -> Dict[str, Any]:
        """What summary.json says of it."""
        return {
            "status": DIVERGED,
            "progress/diverged_step": self.first_bad,
            "progress/last_usable_step": self.last_good,
            "loss/last_usable": self.last_loss,
            "valid/loss": None,
            "valid/perplexity": None,
        }

    def line(self, checkpoint: str, fp16: bool) -> str:
        """One line for the user, with the `checkpoint` to resume from and, with `fp16`, advice on the loss scale."""
        steps = (
            f"step {self.last_step}"
            if self.first_bad == self.last_step
            else f"steps {self.first_bad} to {self.last_step}"
        )
        limit = f"is not finite, or above {LARGEST_LOSS:.0f} nats a token"
        what = (
            "the gradient overflowed and nothing was updated"
            if self.skipped
            else f"the {'validation ' * self.validated}loss {limit}"
        )
        before = (
            "no step had a usable loss"
            if self.last_loss is None
            else f"the last usable training loss was {self.last_loss:.4g}, at step {self.last_good}"
        )
        advice = "a smaller optimizer.learning_rate, more optimizer.warmup_steps, or a smaller optimizer.clip_norm"
        if self.skipped and fp16:
            advice = (
                "a smaller runtime.loss_scale.initial, a smaller optimizer.learning_rate, or runtime.precision=fp32"
            )
        return (
            f"the run diverged: {steps}: {what}; {before}; {checkpoint}; try {advice} "
            "(train.divergence_patience=0 continues regardless)"
        )


class DivergenceWatch:
    """Follows the steps of a run; every rank sees the same numbers, and so comes to the same verdict.

    Args:
        patience: bad steps in a row that are too many; 0: nothing ever is.
        skipped: updates skipped before the first step that is noted.
    """

    def __init__(self, patience: int, skipped: int = 0) -> None:
        self._patience = patience
        self._skipped = skipped
        self._updates = 0
        self._bad_in_row = 0
        self._unusable_in_row = 0
        self._last: Mapping[str, Any] = {}
        self._last_usable: Mapping[str, Any] = {}

    @property
    def is_sound(self) -> bool:
        """Whether the last step's weights may be kept as a checkpoint: its loss was usable, or patience is 0."""
        return not self._patience or self._unusable_in_row == 0

    def note(self, record: Mapping[str, Any]) -> Optional[Verdict]:
        """Takes the metrics of a step; a verdict if there are now too many bad ones in a row."""
        usable = is_usable(record["loss/total"]) and is_usable(record["loss/task"])
        was_skipped = int(record["optim/skipped_steps"]) > self._skipped
        self._skipped = int(record["optim/skipped_steps"])
        self._updates += not was_skipped
        self._unusable_in_row = 0 if usable else self._unusable_in_row + 1
        self._bad_in_row = self._bad_in_row + 1 if was_skipped or not usable else 0
        self._last = record
        if usable:
            self._last_usable = record
        return self._verdict(self._bad_in_row) if self._patience and self._bad_in_row >= self._patience else None

    def at_end(self, record: Mapping[str, Any]) -> Optional[Verdict]:
        """The verdict on a run after its last step, whose metrics, with the validation, are `record`."""
        if not self._patience or not self._last:
            return None
        if self._unusable_in_row or not self._updates:
            return self._verdict(self._bad_in_row)
        if is_usable(record.get("valid/loss", 0.0)):
            return None
        return replace(self._verdict(1), skipped=False, validated=True)

    def _verdict(self, bad: int) -> Verdict:
        """With `bad` bad steps, the last ones."""
        last, good = int(self._last["progress/step"]), self._last_usable
        loss = number(good["loss/task"]) if good else None
        return Verdict(
            last - bad + 1, last, int(good["progress/step"]) if good else 0, loss, skipped=self._unusable_in_row == 0
        )
