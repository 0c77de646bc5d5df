"""With which rules of locality validation in training measures, and that training has them again afterwards."""

from types import SimpleNamespace

import numpy as np
import pytest

from mindspore import nn

from helpers.routers import HIDDEN, LAYOUT, context_of
from locmoe_ops.routers.base import RoutingShape, make_router
from locmoe_ops.routers.selection_bias import LocalityBias, current_locality_strength, set_locality_strength
from locmoe_ops.topology import ExpertPlacement
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.train.statistics import Statistics
from pangu_sigma.train.validation import Validation

SHAPE = RoutingShape(HIDDEN, 8)
STRENGTH, FRACTION = 0.75, 0.25


class Engine:
    """Measures a loss that tells which rules are on: tens of the strength of the local term, ones of the cap."""

    def __init__(self, rules):
        self.context = SimpleNamespace(config=config_from_dict({"moe": {"evaluation_rules": rules}}))
        capped = context_of("faster_moe", SHAPE, max_remote_fraction=FRACTION, rules_change=rules == "none")
        term = LocalityBias("margin", SHAPE, LAYOUT, ExpertPlacement(8, 1, 4), STRENGTH)
        self.router = make_router(capped)
        self.network = nn.CellList([self.router, term])
        self.statistics = Statistics(1, 8)

    def set_locality_bias(self, strength):
        set_locality_strength(self.network, strength)

    @property
    def loss(self):
        cap = self.router.max_remote_fraction
        return 10.0 * current_locality_strength(self.network) + float(cap if isinstance(cap, float) else cap.asnumpy())

    def evaluate(self, batches):
        sums = np.zeros(self.statistics.size)
        sums[:2] = 1.0, self.loss  # tokens, task
        return sums


@pytest.mark.parametrize(
    "rules, expected",
    [
        ("trained", {"valid/loss": 10 * STRENGTH + FRACTION, "valid/local_term_off/loss": FRACTION}),
        ("none", {"valid/loss": 1.0}),  # no term; a cap that binds nobody
    ],
)
def test_validation_measures_with_the_rules_that_are_asked_for(rules, expected):
    engine = Engine(rules)
    found = Validation(engine, 1, [object()], SimpleNamespace(values=lambda values: values)).measure()
    assert {name: value for name, value in found.items() if name.endswith("loss")} == pytest.approx(expected)
    assert engine.loss == 10 * STRENGTH + FRACTION  # as before
