"""The report in a real browser: it is drawn whole on a wide and on a narrow screen, light and dark, without a
complaint.
"""

import numpy as np
import pytest
from PIL import Image  # comes with MindSpore

from pangu_sigma.report.collect import collect
from pangu_sigma.report.report import write_report

GROUND = {"light": (0xFB, 0xFB, 0xFA), "dark": (0x16, 0x18, 0x1C)}


@pytest.fixture
def report(whole_plan, tmp_path):
    return write_report(collect(whole_plan, tmp_path / "out"), tmp_path)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "light"), (1280, "dark")])
def test_it_is_drawn(browse, report, tmp_path, width, scheme):
    """The ground has the scheme's colour, and the bars of the first variants, at their place in the page, have theirs."""
    shot = tmp_path / "shot.png"
    browse(
        report,
        f"--screenshot={shot}",
        f"--window-size={width},1800",
        f"--blink-settings=preferredColorScheme={('dark', 'light').index(scheme)}",
    )
    image = np.asarray(Image.open(shot).convert("RGB"))
    assert image.shape == (1800, width, 3)
    assert tuple(image[2, 2]) == GROUND[scheme]
    seen = {f"{colour:06x}" for colour in np.unique(image.astype(np.int32) @ (1 << 16, 1 << 8, 1))}
    bars = {"light": ("2a6fc9", "d9622b", "12926a"), "dark": ("6aa5f2", "f08a5a", "42c296")}[scheme]
    assert set(bars) <= seen


def test_it_fits_and_can_be_read(measure, report):
    """No text is cut off, lies over another or is lower than 11 pixels, the page does not scroll sideways and loads
    nothing.
    """
    for width, found in zip((1280, 390), measure(report.read_text(encoding="utf-8"), (1280, 390))):
        headings = found.pop("figures")
        assert found == {"width": width, "out": [], "overlapping": [], "leaving": [], "small": 0, "requests": 0}
        assert headings == [
            "Step time",
            "Where a step's time goes",
            "Training loss over steps",
            "Validation perplexity over steps",
            "Validation perplexity over time",
            "Capacity against perplexity",
            "Bytes sent in a step",
            "Bytes that each node's link carried",
            "Which experts the tokens go to, over training",
            "Angles between tokens, and between tokens and gates",
        ]
