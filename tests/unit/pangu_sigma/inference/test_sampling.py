"""Sampling against closed forms."""

import math

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.inference.sampling import RowSampler, SamplingSettings, draw, penalised, probabilities, row_generators

# Probabilities 1/2, 1/4, 1/8, 1/16, 1/16 in another order
LOGITS = np.log([1 / 16, 1 / 2, 1 / 8, 1 / 4, 1 / 16])


def _settings(**values):
    return SamplingSettings(**{"temperature": 1.0, "top_p": 1.0, **values})


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [1 / 16, 1 / 2, 1 / 8, 1 / 4, 1 / 16]),
        ({"temperature": 0.5}, np.array([1, 64, 4, 16, 1]) / 86),  # squares
        ({"top_k": 2}, [0, 2 / 3, 0, 1 / 3, 0]),
        ({"top_k": 4}, np.array([1, 8, 2, 4, 0]) / 15),  # of two equal ones the lower id
        ({"top_p": 0.5}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.51}, [0, 2 / 3, 0, 1 / 3, 0]),
        ({"top_p": 0.9}, np.array([1, 8, 2, 4, 0]) / 15),
        ({"top_k": 3, "top_p": 0.8}, [0, 2 / 3, 0, 1 / 3, 0]),  # 4/7 + 2/7 of what top-k leaves
        ({"top_k": 9}, [1 / 16, 1 / 2, 1 / 8, 1 / 4, 1 / 16]),
    ],
)
def test_probabilities(settings, expected):
    np.testing.assert_allclose(probabilities(LOGITS, _settings(**settings)), expected, rtol=0, atol=1e-15)


def test_large_logits_do_not_overflow():
    found = probabilities(np.array([1e4, 1e4 - math.log(3), -1e4]), _settings())
    np.testing.assert_allclose(found, [3 / 4, 1 / 4, 0], rtol=1e-11)


def test_by_default_tokens_are_drawn():
    """Of a model that prefers one word for ever: greedy decoding repeats it, and draws of 0.8 and 0.95 do not."""
    logits = np.log([0.5, 0.3, 0.19, 0.01])  # the last is beyond 0.95 of (logits / 0.8), 0.6 % of them
    drawn, greedy = (
        RowSampler(s, [0], np.random.default_rng(0)) for s in (SamplingSettings(), _settings(temperature=0))
    )
    assert {drawn.next(logits) for _ in range(200)} == {0, 1, 2}
    assert {greedy.next(logits) for _ in range(20)} == {0}
    assert (SamplingSettings().temperature, SamplingSettings().top_p) == (0.8, 0.95)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_scores_of_a_model_that_diverged_are_no_token(bad, temperature):
    """np.argmax takes the place of a NaN, and a search in sums of NaN the one after the last word."""
    sampler = RowSampler(_settings(temperature=temperature), [0], np.random.default_rng(0))
    for logits in ([bad] * 4, [0.0, 1.0, bad, 2.0]):
        with pytest.raises(InputError, match="scores for the next token are not finite numbers"):
            sampler.next(np.array(logits, np.float32))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 5e-324},
        {"temperature": 1e-320, "top_k": 3},
        {"temperature": 1e308},
        {"repetition_penalty": 1e-320},
        {"repetition_penalty": 1e308},
        {"frequency_penalty": 1e308, "presence_penalty": 1e308},
        {"frequency_penalty": -1e308},
        {"presence_penalty": -1e308, "frequency_penalty": 1e308, "top_p": 1e-300},
        {"top_k": 1, "top_p": 0.1},
    ],
)
@pytest.mark.parametrize(
    "logits", [[3.4e38, -3.4e38, 0.0, 3.4e38], [-3.4e38] * 4, [1e-45, 0.0, 0.0, -1e-45], [1.0, 2.0, 3.0, 4.0]]
)
def test_no_setting_leads_outside_the_vocabulary(values, logits):
    sampler = RowSampler(_settings(**values), [0, 3], np.random.default_rng(0))
    assert all(0 <= sampler.next(np.array(logits, np.float32)) < 4 for _ in range(30))


def test_the_largest_random_number_is_still_inside():
    for distribution in ([0.5, 0.5, 0.0], [0.1] * 10, [1.0], [1e-320, 1e-320]):
        assert distribution[draw(np.array(distribution), 1.0 - 2.0**-53)] > 0.0


def test_penalties():
    logits = np.array([2.0, -2.0, 1.0, 0.5])
    settings = _settings(repetition_penalty=2.0, frequency_penalty=0.25, presence_penalty=0.5)
    # 0: in prompt and twice in the output; 1: in the prompt; 2: once in the output
    found = penalised(logits, {0, 1, 2}, {0: 2, 2: 1}, settings)
    np.testing.assert_array_equal(found, [1.0 - 0.5 - 0.5, -4.0, 0.5 - 0.25 - 0.5, 0.5])
    np.testing.assert_array_equal(penalised(logits, set(), {}, settings), logits)


def test_penalties_see_what_was_chosen():
    sampler = RowSampler(SamplingSettings(temperature=0.0, frequency_penalty=1.0), [3], np.random.default_rng(0))
    logits = np.array([0.0, 2.5, 1.0, 0.0])
    assert [sampler.next(logits) for _ in range(5)] == [
        1,
        1,
        2,
        1,
        0,
    ]  # 2.5, 1.5, then 0.5 beside 1, 0.5 beside 0, -0.5 beside 0


def test_draw_inverts_the_cumulated_distribution():
    distribution = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    assert [draw(distribution, uniform) for uniform in (0.0, 0.2499, 0.25, 0.5, 1.0 - 2.0**-53)] == [1, 1, 3, 3, 3]


def test_draws_have_their_distribution():
    (generator,) = row_generators([[1]], [0], seed=2)
    sampler = RowSampler(_settings(), [1], generator)
    count = 4096
    found = np.bincount([sampler.next(LOGITS) for _ in range(count)], minlength=5) / count
    # Five standard deviations of a share p of 4096 draws are 5 * sqrt(p * (1 - p) / 4096), at most 0.039
    np.testing.assert_allclose(found, np.exp(LOGITS), rtol=0, atol=0.039)


def test_random_numbers_follow_from_seed_row_and_copy():
    prompts, domains = [[1, 2], [3], [1, 2], [1, 2]], [0, 0, 1, 0]
    first = [generator.random() for generator in row_generators(prompts, domains, 7)]
    assert len(set(first)) == 4
    order = [2, 3, 1]
    other = [
        generator.random() for generator in row_generators([prompts[i] for i in order], [domains[i] for i in order], 7)
    ]
    assert other == [first[2], first[0], first[1]]  # of equal rows the first has the first's numbers
    assert row_generators([[3]], [0], 8)[0].random() != first[1]


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", math.nan),
        ("presence_penalty", math.inf),
        ("seed", -1),
    ],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(InputError, match=f"^{name} is {value}; expected "):
        SamplingSettings(**{name: value})
