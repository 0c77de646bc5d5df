"""From run folders to tables: every number here can be checked by hand."""

import csv
import json
import re

import pytest

from pangu_sigma.report.collect import collect, collection_of, link_values, run_values, write_tables
from pangu_sigma.report.report import render

STEP, EPOCH = "time/step(s)", "time/epoch(s)"


def steps(*times, start=1, **more):
    """One record a step; lists in `more` give a value a step."""
    return [
        {
            "progress/step": start + number,
            STEP: time,
            **{name: value[number] if isinstance(value, list) else value for name, value in more.items()},
        }
        for number, time in enumerate(times)
    ]


def test_times_and_bytes_are_of_the_middle_half_after_the_ignored_steps():
    """The window is steps 5 to 8, of 2, 3, 4 and 9 s: its middle half is steps 6 and 7, wherever their other numbers
    lie. With four more steps ignored, of steps 6 to 8 none may go.
    """
    records = steps(
        50.0,
        60.0,
        1.0,
        1.0,
        2.0,
        3.0,
        4.0,
        9.0,
        **{"comm/inter_node(B)": [1, 1, 1, 1, 1, 100, 300, 1], "time/compute(s)": [9, 9, 9, 9, 9, 1.0, 2.0, 9]},
    )
    assert run_values(records, {}, ignored=5)[STEP] == pytest.approx(16 / 3)
    values = run_values(records, {}, ignored=2)
    assert (values[STEP], values["comm/inter_node(B)"], values["time/compute(s)"]) == (3.5, 200.0, 1.5)


def test_routing_is_of_the_second_half_and_validation_the_last():
    records = steps(
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
        **{"moe/drop_fraction": [0.9, 0.8, 0.3, 0.2, 0.1], "valid/perplexity": [90.0, 80.0, 70.0, 50.0, 40.0]},
    )
    values = run_values(records, {"unigram_perplexity": 70.0}, ignored=4)
    assert values["moe/drop_fraction"] == pytest.approx((0.3 + 0.2 + 0.1) / 3)
    assert (values["valid/perplexity"], values["valid/unigram_perplexity"]) == (40.0, 70.0)


def test_links_are_those_that_the_interfaces_counted():
    counters = {
        "interfaces": [{"node": 1, "tx_bytes": {"before": 5, "after": 12}, "rx_bytes": {"before": 0, "after": 1}}]
    }
    assert link_values(counters) == {"link/node_1(B)": 7.0}
    assert link_values({}) == {}


def test_shares_epoch_and_pace():
    """Steps of 2 and 4 s, the second twice the tokens: 3 s a step; step 8 ends epoch 0.25, so an epoch is 32 steps."""
    records = steps(
        9.0,
        9.0,
        2.0,
        4.0,
        start=5,
        **{
            "progress/epoch": [5 / 32, 6 / 32, 7 / 32, 8 / 32],
            "throughput/tokens_per_second": 100.0,
            "time/all_to_all(s)": [9, 9, 0.5, 1.0],
            "time/communication(s)": [9, 9, 1.0, 3.0],
            "time/overlapped(s)": [9, 9, 0.0, 1.0],
        },
    )
    values = run_values(records, {}, ignored=0)
    assert values[EPOCH] == pytest.approx(3.0 * 32)
    assert values["throughput/tokens_per_second"] == pytest.approx((200 + 400) / 6)
    assert values["time/all_to_all_share"] == pytest.approx(0.75 / 3.0)
    assert values["time/overlapped_share"] == pytest.approx(0.5 / 2.0)


def test_what_a_run_has_not_measured_is_left_out():
    records = steps(
        1.0,
        3.0,
        **{
            "comm/inter_node(B)": None,
            "moe/tokens_per_expert": [[[1, 2]], [[3, 4]]],
            "time/communication(s)": 0.0,
            "optim/skipped": True,
        },
    )
    assert run_values(records, {}, ignored=0) == {STEP: 3.0, "time/communication(s)": 0.0}
    assert run_values([], {}, ignored=0) == {}


@pytest.fixture
def two_seeds(make_plan, write_run):
    """hash takes 2 and 4 s, locmoe 1 and 3 s; locmoe sends nothing between nodes."""
    plan = make_plan(seeds=[1, 2], baseline="hash", warmup_steps_ignored=1)
    times = {("hash", 1): 2.0, ("hash", 2): 4.0, ("locmoe", 1): 1.0, ("locmoe", 2): 3.0}
    for run in plan.runs:
        write_run(
            run,
            steps(99.0, times[run.variant, run.seed], **{"comm/inter_node(B)": 0 if run.variant == "locmoe" else 8}),
        )
    return plan


def test_spreads_over_seeds_and_ratios_within_a_seed(two_seeds, tmp_path):
    data = collect(two_seeds, tmp_path / "out")
    assert data.table["all"]["locmoe"][STEP] == {"mean": 2.0, "min": 1.0, "max": 3.0, "seeds": 2}
    # 1/2 and 3/4: not 2/3, the ratio of the means
    assert data.ratios["all"]["locmoe"][STEP] == {"mean": 0.625, "min": 0.5, "max": 0.75, "seeds": 2}
    assert data.ratios["all"]["hash"][STEP] == {"mean": 1.0, "min": 1.0, "max": 1.0, "seeds": 2}
    assert data.ratios["all"]["locmoe"]["comm/inter_node(B)"]["mean"] == 0.0
    assert [run.run.seed for run in data.of("all", "hash")] == [1, 2]
    assert (data.mean("all", "hash", STEP), data.mean("all", "hash", "no/such"), data.mean("time", "hash", STEP)) == (
        3.0,
        None,
        None,
    )


# How the last record of a run says that it diverged: null, an older version's NaN, and what it made of sums that had
# wrapped.
RUINED = [
    {"valid/loss": None, "valid/perplexity": None},
    {"valid/loss": float("nan"), "valid/perplexity": 1e304},
    {"valid/loss": -69810262081.0, "valid/perplexity": 0.0},
    {"valid/loss": 1e5, "valid/perplexity": None},
    {"loss/total": None},
    {"loss/total": 1e9, "loss/task": 1e9},
]


@pytest.mark.parametrize("last", RUINED)
def test_a_seed_that_diverged_is_not_lost_in_a_mean(make_plan, write_run, tmp_path, last):
    """locmoe's first seed was at 5.0 before: the best of all, had it not gone on. Its second seed, 20.0, is a number
    still.
    """
    plan = make_plan(seeds=[1, 2], baseline="hash")
    for run in plan.runs:
        ruined = (run.variant, run.seed) == ("locmoe", 1)
        perplexity = {("hash", 1): 10.0, ("hash", 2): 12.0, ("locmoe", 1): 5.0, ("locmoe", 2): 24.0}[
            run.variant, run.seed
        ]
        first, second = steps(1.0, 1.0, **{"loss/total": 5.0, "valid/loss": 2.0, "valid/perplexity": perplexity})
        write_run(run, [first, {**second, **last} if ruined else second])
    data = collect(plan, tmp_path / "out")
    found = data.table["all"]["locmoe"]["valid/perplexity"]
    assert (found["mean"], found["min"], found["seeds"], found["diverged"]) == (float("inf"), 24.0, 2, 1)
    assert data.ratios["all"]["locmoe"]["valid/perplexity"]["min"] == 2.0
    ranked = sorted(plan.variants, key=lambda variant: data.table["all"][variant]["valid/perplexity"]["mean"])
    assert ranked == ["hash", "locmoe"]
    text = render(data)
    assert re.search("Diverged, so that they have no perplexity: [^.,]*locmoe[^.,]*1 .step 2.\\.", text)
    assert "diverged<small>1 of 2 seeds; others from 24</small>" in text and "inf" not in re.sub(
        "[a-z]*inform[a-z]*", "", text
    )
    write_tables(data, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["phases"]["all"]["locmoe"]["valid/perplexity"] == {
        "mean": None,
        "min": 24.0,
        "max": None,
        "seeds": 2,
        "diverged": 1,
    }
    (row,) = [
        row
        for row in csv.DictReader(open(tmp_path / "out" / "runs.csv"))
        if (row["variant"], row["seed"]) == ("locmoe", "1")
    ]
    assert row["valid/perplexity"] == "diverged"


def test_no_ratio_to_a_baseline_that_diverged(make_plan, write_run, tmp_path):
    plan = make_plan(seeds=[1], baseline="hash")
    for run in plan.runs:
        write_run(run, steps(1.0, **{"valid/perplexity": None if run.variant == "hash" else 9.0}))
    data = collect(plan, tmp_path / "out")
    assert "valid/perplexity" not in data.ratios["all"]["locmoe"]
    assert data.table["all"]["locmoe"]["valid/perplexity"]["mean"] == 9.0


def test_no_ratio_to_a_zero_or_to_a_run_that_is_missing(make_plan, write_run, tmp_path):
    plan = make_plan(seeds=[1, 2], baseline="locmoe")
    for run in plan.runs:
        if (run.variant, run.seed) != ("locmoe", 2):
            write_run(run, steps(2.0, **{"comm/inter_node(B)": 0 if run.variant == "locmoe" else 8}))
    ratios = collect(plan, tmp_path / "out").ratios["all"]["hash"]
    assert ratios[STEP] == {"mean": 1.0, "min": 1.0, "max": 1.0, "seeds": 1}
    assert "comm/inter_node(B)" not in ratios


def test_only_finished_runs_of_these_settings_count(make_plan, write_run, tmp_path):
    plan = make_plan(seeds=[1, 2, 3])
    whole, other, failed, cut, *_ = plan.runs
    write_run(whole, steps(1.0), cosines={"token_gate": 1})
    write_run(other, steps(1.0), run={"settings": "of another", "status": "finished"})
    write_run(failed, steps(1.0), run={"settings": failed.settings, "status": "failed"})
    write_run(cut, steps(1.0))
    (tmp_path / "out" / "runs" / cut.phase / cut.variant / f"seed_{cut.seed}" / "summary.json").write_text(
        '{"steps": 1'
    )
    (found,) = collect(plan, tmp_path / "out").runs
    assert (found.run, found.cosines) == (whole, {"token_gate": 1})
    assert found.values["valid/unigram_perplexity"] == 900.0


def test_runs_of_several_states_of_the_code_come_with_a_warning(make_plan, write_run, tmp_path):
    plan = make_plan(seeds=[1, 2, 3])
    for run, code in zip(plan.runs, ("0123456789ab", "0123456789ab", "ba9876543210", None)):
        write_run(run, steps(1.0), summary={"router": "x", **({"code": code} if code else {})})
    data = collect(plan, tmp_path / "out")
    assert data.codes() == {"0123456789ab": 2, "ba9876543210": 1, "not noted": 1}
    assert "made with 3 states of the code (0123456789ab: 2, ba9876543210: 1, not noted: 1)" in data.warning()
    assert collection_of(plan, data.runs[:2]).warning() == ""


def test_tables_on_disk(two_seeds, tmp_path):
    data = collect(two_seeds, tmp_path / "out")
    write_tables(data, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["baseline"], summary["runs"], summary["warmup_steps_ignored"]) == (
        "hash",
        {"finished": 4, "planned": 4},
        1,
    )
    assert summary["code"] == {"not noted": 4}
    assert summary["phases"] == data.table and summary["ratios_to_baseline"] == data.ratios
    rows = list(csv.DictReader((tmp_path / "out" / "runs.csv").read_text().splitlines()))
    assert [(row["phase"], row["variant"], row["seed"], float(row[STEP])) for row in rows] == [
        ("all", "hash", "1", 2.0),
        ("all", "locmoe", "1", 1.0),
        ("all", "locmoe", "2", 3.0),
        ("all", "hash", "2", 4.0),
    ]
