"""What the figures say of runs whose numbers are known, and that they say why they are missing."""

import math

import pytest

from pangu_sigma.report import curves, figures
from pangu_sigma.report.collect import collect


def step(number=1, seconds=1.0, **more):
    return {"progress/step": number, "time/step(s)": seconds, **more}


def test_every_figure_is_drawn_where_the_runs_have_everything(whole_plan, tmp_path):
    specs = [spec for _, group in figures.all_figures(collect(whole_plan, tmp_path / "out")) for spec in group]
    assert len({spec.name for spec in specs}) == len(specs) == 19
    for spec in specs:
        assert spec.content is not None and spec.sentence.endswith("."), spec.name


def test_every_figure_says_why_it_is_not_drawn(data_of):
    for heading, group in figures.all_figures(data_of([{"progress/step": 1, "loss/total": 7.0}])):
        for spec in group:
            assert spec.content is None and spec.missing, (heading, spec)


def test_step_time_and_epoch(data_of):
    data = data_of({"hash": [step(10, 2.0, **{"progress/epoch": 0.1})], "locmoe": [step(10, 1.0)]})
    content = figures.step_time(data).content
    assert [(bar.label, bar.values, bar.text) for bar in content.bars] == [
        ("hash", [2.0], "2 s (epoch 3.33 min)"),  # 100 steps of 2 s an epoch
        ("locmoe", [1.0], "1 s"),
    ]
    assert content.x_label == "step time (s)"


@pytest.mark.parametrize(
    ("seconds", "label", "value"),
    [(0.25, "step time (ms)", 250.0), (1.0, "step time (s)", 1.0), (300.0, "step time (min)", 5.0)],
)
def test_the_axis_has_a_unit_that_fits(data_of, seconds, label, value):
    content = figures.step_time(data_of([step(1, seconds)])).content
    assert content.x_label == label and content.bars[0].values == [pytest.approx(value)]


@pytest.mark.parametrize(("seeds", "ranged"), [([1], False), ([1, 2], True)])
def test_a_whisker_and_a_band_need_several_seeds(make_plan, write_run, tmp_path, seeds, ranged):
    """Steps of 1 s and 2 s, perplexities 11 and 12, by seed; drop fractions 0.1 and 0.2."""
    plan = make_plan(seeds=seeds)
    for run in plan.runs:
        more = {"valid/perplexity": 10.0 + run.seed, "moe/drop_fraction": 0.1 * run.seed}
        write_run(run, [step(number, float(run.seed), **more) for number in (1, 2)])
    data = collect(plan, tmp_path / "out")
    bar = figures.step_time(data).content.bars[0]
    assert (bar.low, bar.high) == ((1.0, 2.0) if ranged else (None, None))
    assert ("whisker" in figures.step_time(data).sentence) is ranged
    for spec, low, high in (
        (curves.perplexity_over_steps(data), 11.0, 12.0),
        (curves.over_steps(data, curves.DROPPED), 10.0, 20.0),
    ):
        curve = spec.content.curves[0]
        assert (list(curve.low), list(curve.high)) == (
            [low] * 2 if ranged else [],
            [pytest.approx(high)] * 2 if ranged else [],
        )
        assert ("band spans the seeds" in spec.sentence) is ranged


def test_the_pieces_of_a_step_add_up_to_it(data_of):
    """10 s: of 5 s of communication 3 are hidden behind 7 s of computation; 1 s idle."""
    split = {"time/compute(s)": 7.0, "time/communication(s)": 5.0, "time/overlapped(s)": 3.0, "time/idle(s)": 1.0}
    content = figures.time_split(data_of([step(1, 10.0, **split)])).content
    assert content.bars[0].values == [4.0, 3.0, 2.0, 1.0] and content.bars[0].text == "10 s"
    assert content.pieces[:3] == ("computation", "both at once", "communication alone")


def test_what_a_step_waits_for_adds_up_to_it(data_of):
    """10 s, 7 of them computation: of 4 s for tokens 2 are hidden, of 1.5 s for gradients 1; the rest are 0.5 s."""
    split = {"time/all_to_all(s)": 4.0, "time/all_to_all/overlapped(s)": 2.0}
    split |= {"time/gradient(s)": 1.5, "time/gradient/overlapped(s)": 1.0, "time/compute(s)": 7.0}
    content = figures.time_by_cause(data_of([step(1, 10.0, **split)])).content
    assert content.bars[0].values == [7.0, 2.0, 0.5, 0.5] and content.bars[0].text == "10 s"
    assert content.pieces[1] == "waiting for tokens" and content.bars[0].low is None


def test_a_single_rank_waits_for_nothing(data_of):
    alone = figures.time_by_cause(data_of([step(1, 10.0, **{"time/compute(s)": 10.0})]))
    assert alone.content is None and "exchanged" in alone.missing


@pytest.mark.parametrize("by_cause", [True, False])
def test_bytes_by_cause_where_they_are_known(data_of, by_cause):
    causes = dict(zip(figures.CAUSES, (3e6, 1e6, 2e6, 4e6))) if by_cause else {}
    spec = figures.bytes_sent(data_of([step(**{"comm/inter_node(B)": 4e6, "comm/intra_node(B)": 6e6}, **causes)]))
    assert spec.content.bars[0].values == ([3.0, 1.0, 2.0, 4.0] if by_cause else [4.0, 6.0])
    assert spec.content.bars[0].text == "10 MB" and spec.content.x_label == "sent in a step (MB)"
    assert ("by cause" in spec.sentence) is by_cause and len(spec.content.pieces) == len(spec.content.bars[0].values)


def test_a_single_rank_sends_nothing(data_of):
    spec = figures.bytes_sent(data_of([step(**{"comm/inter_node(B)": 0.0, "comm/intra_node(B)": 0.0})]))
    assert spec.content is None and spec.missing == "a single rank sends nothing"


def test_bytes_of_a_run_on_one_node_which_has_none_between_nodes(data_of):
    """And none of tokens: one rank holds all experts."""
    spec = figures.bytes_sent(data_of([step(**{"comm/intra_node(B)": 4e6, "comm/gradient/intra_node(B)": 4e6})]))
    (bar, *_) = spec.content.bars
    assert bar.text == "4 MB" and "by cause" in spec.sentence
    assert dict(zip(spec.content.pieces, bar.values))["gradients, inside nodes"] == sum(bar.values) == 4.0


def test_bytes_by_link_are_what_the_interfaces_counted(data_of):
    counted = [
        {"node": node, "tx_bytes": {"before": 500, "after": 500 + sent}}
        for node, sent in enumerate((3_000_000, 1_000_000))
    ]
    content = figures.bytes_by_link(
        data_of([step()], {"interfaces": {"interfaces": counted}}, cluster={"nodes": 2, "ranks_per_node": 1})
    ).content
    assert [(bar.label, bar.values, bar.text, bar.number) for bar in content.bars] == [
        ("hash, node 0", [3.0], "3 MB", 0),
        ("hash, node 1", [1.0], "1 MB", 0),
        ("locmoe, node 0", [3.0], "3 MB", 1),
        ("locmoe, node 1", [1.0], "1 MB", 1),
    ]


def test_expert_assignment_of_the_last_layer(data_of):
    """Of 4 experts one gets all, 4 times an even load; then each its quarter."""
    records = [
        step(1, **{"moe/tokens_per_expert": [[9, 9, 9, 9], [8, 0, 0, 0]]}),
        step(2, **{"moe/tokens_per_expert": [[9, 9, 9, 9], [2, 2, 2, 2]]}),
    ]
    content = figures.expert_assignment(data_of(records)).content
    assert content.maps[0].cells == [[4.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    assert content.maps[0].edges == [0.0, 1.0, 2.0] and content.top == 4.0


def test_expert_assignment_of_a_long_run_is_summed_in_stretches(data_of):
    records = [step(number, **{"moe/tokens_per_expert": [[number % 2, 1 - number % 2]]}) for number in range(1, 401)]
    (found, _) = figures.expert_assignment(data_of(records)).content.maps
    assert found.cells == [[1.0] * 40] * 2 and found.edges == [10.0 * place for place in range(41)]


def test_cosines_are_densities(data_of):
    """Counts 1 and 3 in bins of 0.5: densities 0.5 and 1.5."""
    data = data_of([step()], {"cosines": {"token_gate": {"edges": [0.0, 0.5, 1.0], "counts": [1, 3]}}})
    ((name, content), _) = figures.cosine_histograms(data).content.panels
    (curve,) = content.curves
    assert (name, curve.label) == ("hash", "token and gate weight")
    assert (curve.x, curve.y) == ([0.25, 0.75], [0.5, 1.5])


def test_numbers_that_are_none_are_left_out(data_of):
    records = [step(number, **{"optim/grad_norm": value}) for number, value in enumerate((1.0, math.nan, None, 2.0), 1)]
    curve = curves.over_steps(data_of(records), curves.GRADIENT_NORM).content.curves[0]
    assert (curve.x, curve.y) == ([1, 4], [1.0, 2.0])
