"""What counts as diverged, and when a run ends for it: step by step, by hand."""

import math

import pytest

from pangu_sigma.train.divergence import DivergenceWatch, Verdict

NAN, INF = math.nan, math.inf


def follow(watch, *steps):
    """Steps as (loss, skipped so far), or a loss alone; the verdicts, and the last record."""
    found, record = [], {}
    for number, step in enumerate(steps, start=1):
        loss, skipped = step if isinstance(step, tuple) else (step, 0)
        record = {"progress/step": number, "loss/total": loss, "loss/task": loss, "optim/skipped_steps": skipped}
        found.append(watch.note(record))
    return found, record


@pytest.mark.parametrize(
    ("patience", "steps", "expected"),
    [
        (2, [5.0, NAN, NAN], Verdict(2, 3, 1, 5.0)),
        (3, [5.0, 4.0, INF, 1e9, None], Verdict(3, 5, 2, 4.0)),
        (2, [NAN, NAN], Verdict(1, 2, 0, None)),
        (2, [NAN, 5.0, NAN, 5.0], None),  # never in a row
        (0, [NAN] * 50, None),
        (3, [(6.0, 1), (6.0, 2), (6.0, 3)], Verdict(1, 3, 3, 6.0, skipped=True)),  # an fp16 that never updates
        (3, [(6.0, 1), (6.0, 2), (6.0, 2), (6.0, 3)], None),
        (3, [(6.0, 1), (NAN, 2), (NAN, 3)], Verdict(1, 3, 1, 6.0)),  # both kinds in a row
        (1, [5.0, NAN], Verdict(2, 2, 1, 5.0)),
    ],
)
def test_so_many_steps_in_a_row(patience, steps, expected):
    found, _ = follow(DivergenceWatch(patience), *steps)
    assert found[-1] == expected and not any(found[:-1])


def test_a_resumed_run_does_not_count_what_was_skipped_before():
    assert follow(DivergenceWatch(1, skipped=7), (5.0, 7), (5.0, 7)) == (
        [None, None],
        {"progress/step": 2, "loss/total": 5.0, "loss/task": 5.0, "optim/skipped_steps": 7},
    )


@pytest.mark.parametrize(
    ("patience", "steps", "validation", "expected"),
    [
        (10, [5.0, NAN], None, Verdict(2, 2, 1, 5.0)),
        (10, [5.0, 4.0], {"valid/loss": 3.0}, None),
        (10, [5.0, 4.0], None, None),
        (10, [5.0, (4.0, 1)], {"valid/loss": 3.0}, None),  # one overflow is nothing
        (10, [5.0, (4.0, 1)], {"valid/loss": NAN}, Verdict(2, 2, 2, 4.0, validated=True)),
        (
            10,
            [(5.0, 1), (5.0, 2)],
            {"valid/loss": 5.0},
            Verdict(1, 2, 2, 5.0, skipped=True),
        ),  # no update in the whole run
        (10, [5.0, 4.0], {"valid/loss": 800.0}, Verdict(2, 2, 2, 4.0, validated=True)),
        (0, [NAN, NAN], {"valid/loss": NAN}, None),
        (10, [], {"valid/loss": NAN}, None),
    ],
)
def test_the_end_of_a_run(patience, steps, validation, expected):
    watch = DivergenceWatch(patience)
    found, record = follow(watch, *steps)
    assert not any(found) and watch.at_end({**record, **(validation or {})}) == expected


def test_what_may_be_kept_as_a_checkpoint():
    watch = DivergenceWatch(5)
    sound = []
    for step in ((5.0, 0), (NAN, 1), (5.0, 1), (5.0, 2)):
        follow(watch, step)
        sound.append(watch.is_sound)
    assert sound == [True, False, True, True]
    ended = Verdict(5, 14, 4, 4.5)
    assert [ended.is_sound(step) for step in (2, 3, 4, 14)] == [
        True,
        True,
        False,
        False,
    ]  # that of step 4 gave step 5 its loss
    assert Verdict(5, 14, 14, 4.5, skipped=True).is_sound(14)


def test_the_line_says_where_what_and_what_to_try():
    line = Verdict(3, 12, 2, 156.93).line("the newest checkpoint from before is step_1", fp16=False)
    assert line.startswith(
        "the run diverged: steps 3 to 12: the loss is not finite, or above 710 nats a token; the last usable training "
        "loss was 156.9, at step 2; the newest checkpoint from before is step_1; try a smaller optimizer.learning_rate"
    )
    line = Verdict(1, 10, 10, 5.785, skipped=True).line("no checkpoint", fp16=True)
    assert (
        "steps 1 to 10: the gradient overflowed and nothing was updated" in line
        and "smaller runtime.loss_scale.initial" in line
    )
    assert "step 9: the validation loss is" in Verdict(9, 9, 9, 4.0, validated=True).line("", False)
    assert "; no step had a usable loss;" in Verdict(1, 2, 0, None).line("", False)
