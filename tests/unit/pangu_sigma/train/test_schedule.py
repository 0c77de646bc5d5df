import math

import numpy as np
import pytest

from mindspore import Tensor

from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.schema_run import LossScaleConfig, OptimizerConfig
from pangu_sigma.train.schedule import LossScale, Ramp, context_ramp, learning_rate

PEAK, END = 1e-3, 1e-5


def rate(step, schedule="cosine", total=1000, warmup=100, decay=None):
    options = OptimizerConfig(
        learning_rate=PEAK, end_learning_rate=END, schedule=schedule, warmup_steps=warmup, decay_steps=decay
    )
    return learning_rate(options, total, step)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("step, share", [(1, 0.01), (50, 0.5), (99, 0.99), (100, 1.0)])
def test_warm_up_is_linear_from_the_first_step(schedule, step, share):
    assert rate(step, schedule) == pytest.approx(PEAK * share, rel=1e-12)


@pytest.mark.parametrize(
    "schedule, step, left",
    [
        ("constant", 101, 1.0),
        ("constant", 5000, 1.0),
        ("linear", 101, 1.0 - 1 / 900),
        ("linear", 550, 0.5),
        ("linear", 999, 1 / 900),
        ("linear", 1000, 0.0),
        ("linear", 1500, 0.0),
        ("cosine", 325, 0.5 + math.sqrt(0.5) / 2),
        ("cosine", 550, 0.5),
        ("cosine", 1000, 0.0),
        ("cosine", 1500, 0.0),
    ],
)
def test_decay(schedule, step, left):
    """`left`: share of the way from the end rate to the peak."""
    expected = PEAK if schedule == "constant" else END + (PEAK - END) * left
    assert rate(step, schedule) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decay_can_end_before_the_run(schedule):
    assert rate(300, schedule, decay=500) == pytest.approx((PEAK + END) / 2)
    assert rate(500, schedule, decay=500) == rate(999, schedule, decay=500) == pytest.approx(END)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_without_warm_up_decay_starts_at_once(schedule):
    first = rate(1, schedule, warmup=0)
    assert first == PEAK if schedule == "constant" else PEAK * 0.998 < first < PEAK


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_run_that_is_all_warm_up(schedule):
    assert rate(100, schedule, total=100) == PEAK
    assert rate(101, schedule, total=100) == END


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_never_rises_after_warm_up(schedule):
    rates = [rate(step, schedule) for step in range(100, 1200)]
    assert rates == sorted(rates, reverse=True)
    # No jump anywhere: the steepest descent of the cosine is pi / 2 times that of the line.
    assert max(a - b for a, b in zip(rates, rates[1:])) < 1.6 * (PEAK - END) / 900


# ---- loss scale


def simulate(options, outcomes):
    """(scale, skipped) after each step, by the definition."""
    scale, good, skipped = options.initial, 0, 0
    for finite in outcomes:
        good = good + 1 if finite else 0
        skipped += not finite
        if not finite:
            scale = max(scale / 2, options.minimum)
        elif good == options.growth_interval:
            scale, good = scale * 2, 0
        yield scale, skipped


def test_loss_scale_grows_halves_and_has_a_minimum():
    options = LossScaleConfig(initial=8.0, growth_interval=3, minimum=2.0)
    rng = np.random.default_rng(0)
    outcomes = [True] * 7 + [False] * 4 + [True, True, False, True, True, True] + list(rng.random(30) < 0.8)
    cell = LossScale(options)
    seen = set()
    for finite, (scale, skipped) in zip(outcomes, simulate(options, outcomes)):
        found = cell(Tensor(bool(finite)))
        assert (float(cell.scale.asnumpy()), float(found.asnumpy())) == (scale, skipped)
        seen.add(scale)
    assert {2.0, 4.0, 8.0, 16.0, 32.0} <= seen


def test_a_minimum_that_is_no_power_of_two():
    cell = LossScale(LossScaleConfig(initial=8.0, growth_interval=100, minimum=3.0))
    scales = []
    for _ in range(3):
        cell(Tensor(False))
        scales.append(float(cell.scale.asnumpy()))
    assert scales == [4.0, 3.0, 3.0]


def test_without_options_the_scale_is_one_for_good():
    cell = LossScale(None)
    assert [float(cell(Tensor(finite)).asnumpy()) for finite in (True, False, True)] == [0.0, 1.0, 1.0]
    assert float(cell.scale.asnumpy()) == 1.0


@pytest.mark.parametrize(
    "ramp, values",
    [
        (Ramp(0.0, 1.0), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),  # from the first step on
        (Ramp(0.2, 1.0, start_step=3), [0.2, 0.2, 0.2, 1.0, 1.0, 1.0]),  # a jump
        (Ramp(0.0, 1.0, start_step=1, warmup_steps=4), [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]),
        (Ramp(1.0, 0.0, start_step=1, warmup_steps=4), [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]),  # downwards
        (Ramp(0.0, 0.9, warmup_steps=3), [0.3, 0.6, 0.9, 0.9, 0.9, 0.9]),
        (Ramp(0.0, 1.0, start_step=4, warmup_steps=10), [0.0, 0.0, 0.0, 0.0, 0.1, 0.2]),  # the run ends on the way
    ],
)
def test_a_ramp_by_hand(ramp, values):
    assert [ramp.at(step) for step in range(1, 7)] == pytest.approx(values)


@pytest.mark.parametrize(
    "options, values",
    [
        ({"gate_input": "code"}, None),
        ({"gate_input": "code", "context_weight": 0.5}, [0.5, 0.5, 0.5, 0.5]),
        (
            {"gate_input": "code", "context_weight": 0.5, "context_start_step": 1, "context_warmup_steps": 2},
            [0.0, 0.25, 0.5, 0.5],
        ),
    ],
)
def test_the_context_of_codes_grows_as_configured(options, values):
    ramp = context_ramp(config_from_dict({"moe": {"router": {"locmoe": options}}}).moe.router)
    assert (ramp and [ramp.at(step) for step in (1, 2, 3, 4)]) == values


def test_other_routers_have_no_context():
    assert context_ramp(config_from_dict({"moe": {"router": {"type": "switch"}}}).moe.router) is None
