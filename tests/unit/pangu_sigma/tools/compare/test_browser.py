"""The report in a real browser: it is drawn whole on a wide and on a narrow screen, light and dark, without a complaint."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import numpy as np
import pytest
from PIL import Image  # comes with MindSpore

from pangu_sigma.tools.compare.collect import collect
from pangu_sigma.tools.compare.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium in PATH")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
           "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr", "--v=0")
GROUND = {"light": (0xfb, 0xfb, 0xfa), "dark": (0x16, 0x18, 0x1c)}
# Written into the document around it once it is laid out: how wide it is, and what of it sticks out of the page or of its drawing.
MEASURE = """<script>
const out = [];
for (const text of document.querySelectorAll("svg text")) {
  const inner = text.getBoundingClientRect(), outer = text.ownerSVGElement.getBoundingClientRect();
  if (inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 3) out.push(text.textContent);
}
const overlapping = [];
for (const drawing of document.querySelectorAll("svg")) {
  const texts = [...drawing.querySelectorAll("text")], boxes = texts.map(text => text.getBoundingClientRect());
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, j) => {
    if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
      overlapping.push(texts[i].textContent + " / " + texts[i + 1 + j].textContent);
  }));
}
const small = [...document.querySelectorAll("svg text")].filter(text => text.getBoundingClientRect().height < 11);
parent.document.body.dataset.measured = JSON.stringify({width: document.documentElement.scrollWidth, window: innerWidth, out, overlapping,
  small: small.length, figures: [...document.querySelectorAll("figure:has(svg:not(.legend svg)) h3")].map(item => item.textContent)});
</script>"""


@pytest.fixture
def report(whole_plan, tmp_path):
    return write_report(collect(whole_plan, tmp_path / "out"), tmp_path)


def browse(page, profile, *options):
    done = subprocess.run([BROWSER, *OPTIONS, f"--user-data-dir={profile}", *options, page.as_uri()], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "light"), (1280, "dark")])
def test_it_is_drawn(report, tmp_path, width, scheme):
    """The ground has the scheme's colour, and the bars of the first variants, at their place in the page, have theirs."""
    shot = tmp_path / "shot.png"
    browse(report, tmp_path / "profile", f"--screenshot={shot}", f"--window-size={width},1800",
           f"--blink-settings=preferredColorScheme={('dark', 'light').index(scheme)}")
    image = np.asarray(Image.open(shot).convert("RGB"))
    assert image.shape == (1800, width, 3)
    assert tuple(image[2, 2]) == GROUND[scheme]
    seen = {f"{colour:06x}" for colour in np.unique(image.astype(np.int32) @ (1 << 16, 1 << 8, 1))}
    bars = {"light": ("2a6fc9", "d9622b", "12926a"), "dark": ("6aa5f2", "f08a5a", "42c296")}[scheme]
    assert set(bars) <= seen


@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_and_can_be_read(report, tmp_path, width):
    """No text is cut off, lies over another or is lower than 11 pixels, and the page does not scroll sideways."""
    inner = report.read_text(encoding="utf-8").replace("</body>", MEASURE + "</body>")
    outer = tmp_path / "outer.html"  # a browser's own window is never as narrow as a phone's
    outer.write_text(f'<iframe style="width: {width}px; height: 1800px; border: 0" srcdoc="{escape(inner, quote=True)}"></iframe>')
    dom = browse(outer, tmp_path / "profile", "--dump-dom", "--window-size=1400,1800")
    found = json.loads(unescape(re.search(r'data-measured="([^"]*)"', dom).group(1)))
    headings = found.pop("figures")
    assert found == {"width": width, "window": width, "out": [], "overlapping": [], "small": 0}
    assert headings == ["Step time", "Where a step's time goes", "Validation perplexity over steps", "Validation perplexity over time",
                        "Capacity against perplexity", "Bytes sent in a step", "Bytes that each node's link carried",
                        "Which experts the tokens go to, over training", "Angles between tokens, and between tokens and gates"]
