"""What moves a router's picks away from its probabilities alone: terms on the scores that experts are picked by.

A preference changes which expert is picked and nothing else: the gate weight stays the expert's own probability, so gradients keep
their form and the losses see what the gate says.
"""

from typing import Sequence

from mindspore import Tensor, nn


class Preference(nn.Cell):
    """Base of all terms.

    Inputs: rest <float32>[T, n], probabilities of the experts that a pick may still take, negative ones for others; home, group
    <int32>[T]. Output: <float32>[T, n]; the largest is picked.
    """

    def construct(self, rest: Tensor, home: Tensor, group: Tensor) -> Tensor:
        raise NotImplementedError


class Sum(Preference):
    """Several terms: what each would add to the probabilities, added up."""

    def __init__(self, terms: Sequence[Preference]) -> None:
        super().__init__()
        self.terms = nn.CellList(list(terms))

    def construct(self, rest: Tensor, home: Tensor, group: Tensor) -> Tensor:
        total = rest
        for term in self.terms:
            total = total + (term(rest, home, group) - rest)
        return total
