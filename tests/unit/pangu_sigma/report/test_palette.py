"""Colours: seen on their ground, told apart, and found again in what matplotlib writes."""

import pytest

from pangu_sigma.report import palette
from pangu_sigma.report.palette import COLOURS, HUES

SCHEMES = pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other, scheme):
    light, dark = sorted((luminance(COLOURS[name][scheme]) for name in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@SCHEMES
def test_contrast(scheme):
    """WCAG 2: 4.5 for text, 3 for what is drawn, on the ground and on cards."""
    for ground in ("ground", "card"):
        for name, least in [("ink", 4.5), ("muted", 4.5), *((f"c{number}", 3.0) for number in range(HUES))]:
            assert contrast(name, ground, scheme) >= least, (name, ground)


@SCHEMES
@pytest.mark.parametrize("kind", ["time", "bytes"])
def test_tones_differ_in_lightness(scheme, kind):
    """Printed without colour, too; the weakest is told from the ground by its edge, of the muted colour."""
    for tone in range(3):
        assert contrast(f"{kind}{tone}", f"{kind}{tone + 1}", scheme) >= 1.5
    assert contrast(f"{kind}0", "card", scheme) >= 3


def test_no_light_colour_comes_twice():
    """Each is found by its light value in a drawing, and stands for one thing."""
    assert len({pair[0] for pair in COLOURS.values()}) == len(COLOURS) == len(palette.VARIABLE)


@pytest.mark.parametrize(("count", "places"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 3]), (4, [0, 1, 2, 3])])
def test_few_tones_are_far_apart(count, places):
    assert palette.tones("time", count) == [palette.light(f"time{place}") for place in places]
