"""Which losses are usable, and how they and their perplexities are shown."""

import math
import sys
from typing import Any, Optional

from pangu_sigma.runtime.strict_json import number

LARGEST_LOSS = math.log(sys.float_info.max)  # 709.78 nats a token: exp of more is no float64
OLD_LARGEST = 1e304  # an older version wrote exp(700) for all that is larger
DIVERGED = "diverged"  # what is shown in place of a number, and the status in summary.json


def is_usable(loss: Any) -> bool:
    """Whether a loss in nats a token is a finite number with a finite perplexity."""
    value = number(loss)
    # An older version wrote negative losses, of sums that had wrapped.
    return value is not None and -1.0 < value <= LARGEST_LOSS


def perplexity_of(loss: float) -> Optional[float]:
    """exp of a loss in nats a token; None where that is no float64."""
    return math.exp(loss) if is_usable(loss) else None


def usable_perplexity(value: Any) -> Optional[float]:
    """A perplexity that a file holds; None for null, NaN, and what older versions made of sums that had wrapped: 0, or
    exp(700).
    """
    found = number(value)
    return found if found is not None and 0.5 < found < OLD_LARGEST else None


def loss_text(loss: Any) -> str:
    """A loss as it is shown: with three decimals, or `diverged` where it is not usable."""
    return f"{loss:.3f}" if is_usable(loss) else DIVERGED


def perplexity_text(perplexity: Any) -> str:
    """A perplexity as it is shown: with one decimal, from a million on in short; or `diverged` where it is no finite
    number.
    """
    value = usable_perplexity(perplexity)
    return DIVERGED if value is None else f"{value:.1f}" if value < 1e6 else f"{value:.2e}"
