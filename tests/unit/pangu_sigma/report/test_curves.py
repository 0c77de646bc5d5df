"""Curves over training: of which steps, of which phase, in which unit, and what is cut off."""

import pytest

from pangu_sigma.report import curves
from pangu_sigma.report.collect import collect

MEASURES = [
    (curves.LOSS, "loss/task", 1.0),
    (curves.GRADIENT_NORM, "optim/grad_norm", 1.0),
    (curves.SPEED, "throughput/tokens_per_second", 1.0),
    (curves.DROPPED, "moe/drop_fraction", 100.0),
    (curves.AT_HOME, "moe/local_fraction", 100.0),
    (curves.BALANCE, "moe/load_max_over_mean", 1.0),
]


def step(number=1, seconds=1.0, **more):
    return {"progress/step": number, "time/step(s)": seconds, **more}


@pytest.mark.parametrize(("measure", "metric", "scale"), MEASURES, ids=lambda one: getattr(one, "name", None))
def test_what_every_step_measures(data_of, measure, metric, scale):
    """0.5 and 0.25 of one variant, 0.75 of the other."""
    records = {
        "hash": [step(1, **{metric: 0.5}), step(2, **{metric: 0.25})],
        "locmoe": [step(number, **{metric: 0.75}) for number in (1, 2)],
    }
    content = curves.over_steps(data_of(records), measure).content
    assert [(curve.label, curve.number, curve.x, curve.y) for curve in content.curves] == [
        ("hash", 0, [1, 2], [0.5 * scale, 0.25 * scale]),
        ("locmoe", 1, [1, 2], [0.75 * scale] * 2),
    ]
    assert content.measured and ("%" in content.y_label) == (scale == 100.0)


def test_one_curve_stands_for_several_that_are_the_same(data_of):
    records = [step(number, **{"optim/learning_rate": 1e-3 / number}) for number in (1, 2)]
    content = curves.over_steps(data_of(records), curves.LEARNING_RATE).content
    assert [curve.label for curve in content.curves] == ["all the same"] and not content.hues


def test_a_long_run_is_drawn_in_stretches(data_of):
    """400 steps of losses 1, 2, ... 400 in 100 stretches of 4: the first is 2.5 at step 2.5."""
    records = [step(number, **{"loss/task": float(number)}) for number in range(1, 401)]
    spec = curves.over_steps(data_of({"hash": records, "locmoe": records[:2]}), curves.LOSS)
    first, second = spec.content.curves
    assert len(first.x) == 100 and (first.x[0], first.y[0]) == (2.5, 2.5) and second.x == [1, 2]
    assert not spec.content.measured and curves.AVERAGED in spec.sentence


def test_speed_is_of_the_time_phase_without_steps_that_compile(make_plan, write_run, tmp_path):
    plan = make_plan(phases={"quality": {}, "time": {}}, warmup_steps_ignored=2)
    for run in plan.runs:
        speed = {"quality": 1.0, "time": 50.0}[run.phase]
        write_run(run, [step(number, **{"throughput/tokens_per_second": speed * number}) for number in (1, 2, 3, 4)])
    curve = curves.over_steps(collect(plan, tmp_path / "out"), curves.SPEED).content.curves[0]
    assert (curve.x, curve.y) == ([3, 4], [150.0, 200.0])


def test_a_run_of_one_step_shows_its_speed(data_of):
    content = curves.over_steps(
        data_of([step(1, **{"throughput/tokens_per_second": 9.0})], warmup_steps_ignored=1), curves.SPEED
    ).content
    assert content.curves[0].y == [9.0]


def test_perplexity_over_time_uses_the_time_phase_of_each_variant(make_plan, write_run, tmp_path):
    """100 steps of 3 s and of 6 s are 5 and 10 minutes, though the quality phase took no time at all."""
    plan = make_plan(phases={"quality": {}, "time": {}})
    for run in plan.runs:
        seconds = {"quality": 0.001, "time": 3.0 if run.variant == "hash" else 6.0}[run.phase]
        write_run(run, [step(number, seconds, **{"valid/perplexity": 20.0 - number / 10}) for number in (0, 50, 100)])
    data = collect(plan, tmp_path / "out")
    content = curves.perplexity_over_time(data).content
    assert content.x_label == "training time (min)"
    assert [curve.x for curve in content.curves] == [[0, pytest.approx(2.5), 5], [0, 5, 10]]
    assert [curve.x for curve in curves.perplexity_over_steps(data).content.curves] == [[0, 50, 100]] * 2


def test_perplexity_is_that_of_steps_at_which_all_seeds_were_validated(make_plan, write_run, tmp_path):
    plan = make_plan(seeds=[1, 2], variants={"hash": {"moe.router.type": "hash"}})
    for run, last in zip(plan.runs, (30, 20)):
        write_run(run, [step(number, **{"valid/perplexity": 10.0 + run.seed}) for number in range(10, last + 1, 10)])
    (curve,) = curves.perplexity_over_steps(collect(plan, tmp_path / "out")).content.curves
    assert (curve.x, curve.y) == ([10, 20], [11.5, 11.5])


def test_the_steep_beginning_is_cut_off_but_no_end_is(data_of):
    """From 1000 down to 100 and 195: cut off at 1.05 x 195, above 2 x 100."""
    falling = {
        name: [step(1, **{"valid/perplexity": 1000.0}), step(2, **{"valid/perplexity": end})]
        for name, end in (("hash", 100.0), ("locmoe", 195.0))
    }
    spec = curves.perplexity_over_steps(data_of(falling))
    assert "Values above 205, those of the first steps, are cut off." in spec.sentence
    assert spec.content.top == pytest.approx(204.75)


def test_a_run_that_diverged_keeps_its_place(data_of):
    begin, lost = step(1, **{"valid/perplexity": 10.0}), float("nan")
    ending = {
        "hash": [begin, step(2, **{"valid/perplexity": 9.0})],
        "locmoe": [begin, step(2, **{"valid/perplexity": lost})],
    }
    data = data_of(ending)
    found = data.table["all"]["locmoe"]
    assert found["valid/perplexity"]["mean"] == float("inf") and found["time/step(s)"]["mean"] == 1.0
    spec = curves.perplexity_over_steps(data)
    assert (spec.content.curves[1].x, spec.content.curves[1].y) == ([1], [10.0])
    assert "Diverged, and not drawn from there on: locmoe." in spec.sentence


def test_capacity_as_configured_or_as_measured(data_of):
    measured = [step(**{"valid/perplexity": 9.0, "moe/capacity_factor": 1.75})]
    data = data_of(
        {"hash": [step(**{"valid/perplexity": 10.0})], "locmoe": measured},
        variants={"hash": {"moe.router.type": "hash", "moe.capacity.factor": 1.5}, "locmoe": {}},
    )
    content = curves.capacity_against_perplexity(data).content
    assert [(curve.x, curve.y) for curve in content.curves] == [([1.5], [10.0]), ([1.75], [9.0])] and not content.joined


def test_equal_capacities_are_no_figure(data_of):
    assert (
        "do not differ in capacity"
        in curves.capacity_against_perplexity(data_of([step(**{"valid/perplexity": 9.0})])).missing
    )


COSTS = {"hash": (2.0, 4e6, 10.0), "switch": (3.0, 4e6, 9.0), "locmoe": (1.0, 1e6, 9.5), "ta_moe": (1.0, 2e6, 11.0)}


def of_costs(data_of, costs):
    """A run of each router, of a step's seconds and bytes of tokens between nodes, and a perplexity."""
    names = ("time/step(s)", "comm/all_to_all/inter_node(B)", "valid/perplexity")
    records = {router: [step(**dict(zip(names, values)))] for router, values in costs.items()}
    return data_of(records, variants={router: {"moe.router.type": router} for router in costs})


def test_a_point_a_variant_and_those_that_none_beats(data_of):
    """switch is the best, locmoe the cheapest; hash is slower than locmoe and worse, ta_moe as fast and worse."""
    data = of_costs(data_of, COSTS)
    for draw, place, scale, front in (
        (curves.perplexity_against_step, 0, 1.0, "locmoe, switch"),
        (curves.perplexity_against_bytes, 1, 1e6, "locmoe, switch"),
    ):
        spec = draw(data)
        assert {curve.label: (curve.x, curve.y) for curve in spec.content.curves} == {
            router: ([values[place] / scale], [values[2]]) for router, values in COSTS.items()
        }
        assert f"No variant is both further left and lower than {front}." in spec.sentence and not spec.content.joined


def test_a_front_of_equals_is_one_of_them(data_of):
    data = of_costs(data_of, {"hash": (1.0, 5.0, 10.0), "switch": (1.0, 5.0, 10.0), "locmoe": (2.0, 4.0, 10.0)})
    assert "lower than hash." in curves.perplexity_against_step(data).sentence
    assert "lower than locmoe." in curves.perplexity_against_bytes(data).sentence


@pytest.mark.parametrize(
    ("draw", "costs", "missing"),
    [
        (curves.perplexity_against_step, {"hash": COSTS["hash"]}, "no two variants"),
        (curves.perplexity_against_bytes, {"hash": (1.0, 5.0, 10.0), "switch": (2.0, 5.0, 9.0)}, "differ in the bytes"),
    ],
)
def test_no_figure_of_one_variant_or_of_equal_bytes(data_of, draw, costs, missing):
    assert missing in draw(of_costs(data_of, costs)).missing
