"""The docs' pictures in a real browser, wide and on a phone: nothing cut off, nothing over anything else, all of it
legible.
"""

from pathlib import Path

import pytest

PICTURES = sorted((Path(__file__).resolve().parents[2] / "docs" / "pictures").glob("*.svg"))
PAGE = """<!DOCTYPE html><html><head><meta name="viewport" content="width=device-width, initial-scale=1">
<style>body { margin: 0 16px; } svg { display: block; max-width: 100%; height: auto; }</style>
</head><body>SVG</body></html>"""


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_it_fits_and_can_be_read(picture, measure):
    text = picture.read_text(encoding="utf-8")
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "") and "<script" not in text
    for width, found in zip((1280, 390), measure(PAGE.replace("SVG", text), (1280, 390))):
        assert found == {
            "width": width,
            "out": [],
            "overlapping": [],
            "leaving": [],
            "small": 0,
            "requests": 0,
            "figures": [],
        }


def test_there_are_pictures():
    assert PICTURES
