"""Which losses and perplexities are usable, and how they are shown, by hand."""

import math

import pytest

from pangu_sigma.metrics.perplexity import is_usable, loss_text, perplexity_of, perplexity_text, usable_perplexity

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("loss", "usable", "shown"),
    [
        (5.25, True, "5.250"),
        (0.0, True, "0.000"),
        (709.7, True, "709.700"),
        (709.8, False, "diverged"),
        (1e30, False, "diverged"),
        (NAN, False, "diverged"),
        (INF, False, "diverged"),
        (-INF, False, "diverged"),
        (None, False, "diverged"),
        (-69810262081.0, False, "diverged"),
    ],
)
def test_losses(loss, usable, shown):
    assert (is_usable(loss), loss_text(loss)) == (usable, shown)
    if loss is not None:
        assert perplexity_of(loss) == (math.exp(loss) if usable else None)


@pytest.mark.parametrize(
    ("perplexity", "shown"),
    [
        (58.62, "58.6"),
        (1.0, "1.0"),
        (999999.0, "999999.0"),
        (1.5e6, "1.50e+06"),
        (1e300, "1.00e+300"),
        (math.exp(700.0), "diverged"),
        (0.0, "diverged"),
        (NAN, "diverged"),
        (INF, "diverged"),
        (None, "diverged"),
        ("many", "diverged"),
    ],
)
def test_perplexities(perplexity, shown):
    assert perplexity_text(perplexity) == shown and (usable_perplexity(perplexity) is None) == (shown == "diverged")
