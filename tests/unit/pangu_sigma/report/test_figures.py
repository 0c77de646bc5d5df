"""What the figures say of runs whose numbers are known, and that they say why they are missing."""

import re

import pytest

from pangu_sigma.report import figures
from pangu_sigma.report.collect import collect

WIDTHS = re.compile(r'<rect x="[\d.]+" y="[\d.]+" width="([\d.]+)" height="14"')
PATHS = re.compile(r'd="M([-\d. L]+)" fill="none"')


@pytest.fixture
def data_of(make_plan, write_run, tmp_path):
    """Collects a comparison of hash and locmoe whose runs have these records (by variant, or for both)."""

    def _collect(records, files=(), **changed):
        plan = make_plan(**changed)
        for run in plan.runs:
            write_run(run, records[run.variant] if isinstance(records, dict) else records, **dict(files))
        return collect(plan, tmp_path / "out")

    return _collect


def step(number=1, seconds=1.0, **more):
    return {"progress/step": number, "time/step(s)": seconds, **more}


def heights(figure):
    """y of the points of each curve, as drawn."""
    return [[float(pair.split()[1]) for pair in path.split("L")] for path in PATHS.findall(figure)]


def across(figure):
    return [[float(pair.split()[0]) for pair in path.split("L")] for path in PATHS.findall(figure)]


def test_every_figure_is_drawn_where_the_runs_have_everything(whole_plan, tmp_path):
    data = collect(whole_plan, tmp_path / "out")
    drawn = [figure for _, group in figures.all_figures(data) for figure in group]
    assert len(drawn) == 10
    for figure in drawn:
        assert figure.startswith("<figure>") and "<svg" in figure and "nan" not in figure
        assert all(f">{variant}<" in figure for variant in whole_plan.variants)


def test_every_figure_says_why_it_is_not_drawn(data_of):
    data = data_of([{"progress/step": 1, "loss/total": 7.0}])
    for heading, group in figures.all_figures(data):
        for figure in group:
            assert re.fullmatch(r'<p class="note">[^<]+: not drawn, because [^<]+\.</p>', figure), heading


def test_step_time_and_epoch(data_of):
    data = data_of({"hash": [step(10, 2.0, **{"progress/epoch": 0.1})], "locmoe": [step(10, 1.0)]})
    figure = figures.step_time(data)
    assert "2 s (epoch 3.33 min)" in figure and ">1 s<" in figure  # 100 steps of 2 s an epoch
    first, second = map(float, WIDTHS.findall(figure))
    assert first == pytest.approx(2 * second, abs=0.11)


def test_the_pieces_of_a_step_add_up_to_it(data_of):
    """10 s: of 5 s of communication 3 are hidden behind 7 s of computation; 1 s idle."""
    split = {"time/compute(s)": 7.0, "time/communication(s)": 5.0, "time/overlapped(s)": 3.0, "time/idle(s)": 1.0}
    figure = figures.time_split(data_of([step(1, 10.0, **split)]))
    widths = list(map(float, WIDTHS.findall(figure)))[:4]
    assert [width / sum(widths) for width in widths] == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=1e-3)
    assert ">10 s<" in figure
    assert "hash, both at once: 3 s" in figure and "hash, communication alone: 2 s" in figure


@pytest.mark.parametrize("by_cause", [True, False])
def test_bytes_by_cause_where_they_are_known(data_of, by_cause):
    causes = dict(zip(figures.CAUSES, (3e6, 1e6, 2e6, 4e6))) if by_cause else {}
    figure = figures.bytes_sent(data_of([step(**{"comm/inter_node(B)": 4e6, "comm/intra_node(B)": 6e6}, **causes)]))
    widths = list(map(float, WIDTHS.findall(figure)))
    expected = [0.3, 0.1, 0.2, 0.4] if by_cause else [0.4, 0.6]
    widths = widths[: len(expected)]
    assert [width / sum(widths) for width in widths] == pytest.approx(expected, abs=1e-3)
    assert ">10 MB<" in figure and ("by cause" in figure) is by_cause


def test_bytes_by_link_are_what_the_interfaces_counted(data_of):
    counted = [
        {"node": node, "tx_bytes": {"before": 500, "after": 500 + sent}}
        for node, sent in enumerate((3_000_000, 1_000_000))
    ]
    figure = figures.bytes_by_link(
        data_of([step()], {"interfaces": {"interfaces": counted}}, cluster={"nodes": 2, "workers_per_node": 1})
    )
    first, second, *_ = map(float, WIDTHS.findall(figure))
    assert first == pytest.approx(3 * second, abs=0.11)
    assert ">4 MB<" in figure and "hash, node 1: 1 MB" in figure


def test_perplexity_over_time_uses_the_time_phase_of_each_variant(make_plan, write_run, tmp_path):
    """100 steps of 3 s and of 6 s are 5 and 10 minutes, though the quality phase took no time at all."""
    plan = make_plan(phases={"quality": {}, "time": {}})
    for run in plan.runs:
        seconds = {"quality": 0.001, "time": 3.0 if run.variant == "hash" else 6.0}[run.phase]
        write_run(run, [step(number, seconds, **{"valid/perplexity": 20.0 - number / 10}) for number in (0, 50, 100)])
    data = collect(plan, tmp_path / "out")
    fast, slow = across(figures.perplexity_over_time(data))
    assert fast[-1] - fast[0] == pytest.approx((slow[-1] - slow[0]) / 2, abs=0.2)
    assert "training time (min)" in figures.perplexity_over_time(data)
    same, as_well = across(figures.perplexity_over_steps(data))
    assert same == as_well


def test_perplexity_is_that_of_steps_at_which_all_seeds_were_validated(make_plan, write_run, tmp_path):
    plan = make_plan(seeds=[1, 2], variants={"hash": {"moe.router.type": "hash"}})
    for run, last in zip(plan.runs, (30, 20)):
        write_run(run, [step(number, **{"valid/perplexity": 10.0 + run.seed}) for number in range(10, last + 1, 10)])
    (curve,) = heights(figures.perplexity_over_steps(collect(plan, tmp_path / "out")))
    assert len(curve) == 2 and curve[0] == curve[1]


def test_the_steep_beginning_is_cut_off_but_no_end_is(data_of):
    """From 1000 down to 100 and 180: cut off at 1.05 x 180 = 189, above 1.5 x 100."""
    falling = {
        name: [step(1, **{"valid/perplexity": 1000.0}), step(2, **{"valid/perplexity": end})]
        for name, end in (("hash", 100.0), ("locmoe", 180.0))
    }
    data = data_of(falling)
    assert "Values above 189, those of the first steps, are cut off." in figures.perplexity_over_steps(data)
    (above, low), (_, high) = heights(figures.perplexity_over_steps(data))
    assert above < 24 < high < low < 216


def test_a_run_that_diverged_keeps_its_place(data_of):
    begin, lost = step(1, **{"valid/perplexity": 10.0}), float("nan")
    ending = {
        "hash": [begin, step(2, **{"valid/perplexity": 9.0})],
        "locmoe": [begin, step(2, **{"valid/perplexity": lost})],
    }
    data = data_of(ending)
    found = data.table["all"]["locmoe"]
    assert found["valid/perplexity"]["mean"] == float("inf") and found["time/step(s)"]["mean"] == 1.0
    figure = figures.perplexity_over_steps(data)
    assert (
        "locmoe: 1, 10" in figure and "nan" not in figure and "Diverged, and not drawn from there on: locmoe." in figure
    )


def test_capacity_as_configured_or_as_measured(data_of):
    measured = [step(**{"valid/perplexity": 9.0, "moe/capacity_factor": 1.75})]
    data = data_of(
        {"hash": [step(**{"valid/perplexity": 10.0})], "locmoe": measured},
        variants={"hash": {"moe.router.type": "hash", "moe.capacity.factor": 1.5}, "locmoe": {}},
    )
    figure = figures.capacity_against_perplexity(data)
    assert "hash: 1.5, 10" in figure and "locmoe: 1.75, 9" in figure


def test_equal_capacities_are_no_figure(data_of):
    assert "do not differ in capacity" in figures.capacity_against_perplexity(
        data_of([step(**{"valid/perplexity": 9.0})])
    )


def test_expert_assignment_of_the_last_layer(data_of):
    """Of 4 experts one gets all, then each a quarter: strength 0.3 x 4 (at most 1), 0, and 0.3."""
    data = data_of(
        [
            step(1, **{"moe/tokens_per_expert": [[9, 9, 9, 9], [8, 0, 0, 0]]}),
            step(2, **{"moe/tokens_per_expert": [[9, 9, 9, 9], [2, 2, 2, 2]]}),
        ]
    )
    figure = figures.expert_assignment(data)
    assert re.findall(r'fill-opacity="([\d.]+)"', figure)[:8] == [
        "1.00",
        "0.30",
        "0.00",
        "0.30",
        "0.00",
        "0.30",
        "0.00",
        "0.30",
    ]
    assert ">step 1<" in figure and ">step 2<" in figure


def test_expert_assignment_of_a_long_run_is_summed_in_stretches(data_of):
    records = [step(number, **{"moe/tokens_per_expert": [[number % 2, 1 - number % 2]]}) for number in range(1, 401)]
    assert set(re.findall(r'fill-opacity="([\d.]+)"', figures.expert_assignment(data_of(records)))) == {"0.30"}


def test_cosines_are_densities(data_of):
    """Counts 1 and 3 in bins of 0.5: densities 0.5 and 1.5, so the second step is three times as high above zero."""
    figure = figures.cosine_histograms(
        data_of([step()], {"cosines": {"token_gate": {"edges": [0.0, 0.5, 1.0], "counts": [1, 3]}}})
    )
    low, same, high, _ = heights(figure)[0]
    assert low == same
    # Values from 0.5 to 1.5 with 5 % of air on 192 units: 1.0 is 192 / 1.1 of them.
    assert low - high == pytest.approx(192 / 1.1, abs=0.11)
