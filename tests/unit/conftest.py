"""Execution modes; pages and pictures in a real browser: headless Chromium, where it is in PATH."""

import json
import os
import re
import shutil
import subprocess
from html import escape, unescape

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Whatever a page asked the network for would fail, and Chromium says so on its console.
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--v=0",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
# Written into the document around it once it is laid out: how wide it is, and what of it sticks out of the page or of
# its drawing.
MEASURE = """<script>
const out = [];
for (const text of document.querySelectorAll("svg text")) {
  const inner = text.getBoundingClientRect(), outer = text.ownerSVGElement.getBoundingClientRect();
  if (inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 3)
   out.push(text.textContent);
}
const overlapping = [];
for (const drawing of document.querySelectorAll("svg")) {
  const texts = [...drawing.querySelectorAll("text")], boxes = texts.map(text => text.getBoundingClientRect());
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, j) => {
    if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
      Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
      overlapping.push(texts[i].textContent + " / " + texts[i + 1 + j].textContent);
  }));
}
const leaving = [];  // texts that begin inside a box and end outside
for (const text of document.querySelectorAll("svg text")) {
  const inner = text.getBoundingClientRect(), middle = (inner.top + inner.bottom) / 2;
  const around = [...text.ownerSVGElement.querySelectorAll(":scope > rect")].map(
   rect => rect.getBoundingClientRect()).filter(
    box => box.left < inner.left + 1 && box.right > inner.left + 1 && box.top < middle && box.bottom > middle);
  if (around.some(box => inner.right > box.right)) leaving.push(text.textContent);
}
const small = [...document.querySelectorAll("svg text")].filter(text => text.getBoundingClientRect().height < 11);
parent.found = {...parent.found, [innerWidth]: {width: document.documentElement.scrollWidth, out, overlapping, leaving,
  small: small.length,
  requests: performance.getEntriesByType("resource").length,
  figures: [...document.querySelectorAll("figure:has(svg:not(.legend svg)) h3")].map(item => item.textContent)}};
parent.document.body.dataset.measured = JSON.stringify(parent.found);
</script>"""


@pytest.fixture
def browse(tmp_path):
    """`browse(page, *options)`: opens a file with Chromium; no error on its console; returns what it printed."""
    if BROWSER is None:
        pytest.skip("needs Chromium in PATH")

    def _browse(page, *options):
        done = subprocess.run(
            [BROWSER, *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},  # it has its own malloc
        )
        assert done.returncode == 0, done.stderr
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    return _browse


@pytest.fixture
def measure(browse, tmp_path):
    """`measure(html, widths)`: what MEASURE finds in a page at each width, in pixels."""

    def _measure(html, widths):
        inner = html.replace("</body>", MEASURE + "</body>")
        assert MEASURE in inner
        outer = tmp_path / "outer.html"  # a browser's own window is never as narrow as a phone's
        frames = [
            f'<iframe style="width: {width}px; height: 1800px; border: 0" '
            f'srcdoc="{escape(inner, quote=True)}"></iframe>'
            for width in widths
        ]
        outer.write_text(f"<body>{''.join(frames)}</body>")
        dom = browse(outer, "--dump-dom", "--window-size=1400,1800")
        found = json.loads(unescape(re.search(r'data-measured="([^"]*)"', dom).group(1)))
        return [found[str(width)] for width in widths]

    return _measure


@pytest.fixture
def graph_mode():
    """Cells are compiled, as in training."""
    import mindspore as ms

    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=before)


@pytest.fixture
def pynative_mode(graph_mode):
    """Cells run operator by operator."""
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
