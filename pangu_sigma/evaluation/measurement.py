"""What can be measured of a model: a list of examples, a record for each, and what the records come to."""

import math
from typing import Any, Dict, List, NamedTuple, Optional, Protocol, Sequence

from pangu_sigma.evaluation.intervals import Estimate
from pangu_sigma.runtime.strict_json import number

Record = Dict[str, Any]


def finite_or_nan(value: Optional[float]) -> float:
    """A number of a record. Where the model's was not finite the file holds null, and this is NaN."""
    found = number(value)
    return math.nan if found is None else found


class MeasuredFigure(NamedTuple):
    """One number of the results.

    Attributes:
        domain: that of the examples, or "all".
        metric: its name.
        examples: how many it is of.
        estimate: the value, with its interval.
    """

    domain: str
    metric: str
    examples: int
    estimate: Estimate


class Measurement(Protocol):
    """One measurement, of which each example can be made by itself.

    Attributes:
        name: also of its file of records.
        size: how many examples it has.
        chunk: how many of them are best made together.
    """

    name: str
    chunk: int

    @property
    def size(self) -> int: ...

    def header(self) -> Dict[str, Any]:
        """What the records depend on besides the checkpoint; other content, other records."""
        ...

    def measure(self, numbers: Sequence[int]) -> List[Record]:
        """Records of these examples, in order."""
        ...

    def figures(self, records: Sequence[Record]) -> List[MeasuredFigure]:
        """What the records of all examples come to."""
        ...

    def notes(self, records: Sequence[Record]) -> List[str]:
        """What a reader of the figures has to know, a sentence each; usually none."""
        ...
