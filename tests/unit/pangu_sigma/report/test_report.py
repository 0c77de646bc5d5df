"""The report as a whole: it stands alone, holds every number, and says what is missing. In a real browser it is drawn
whole on a wide and on a narrow screen, light and dark, without a complaint.
"""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image  # comes with MindSpore

from pangu_sigma.report.collect import collect
from pangu_sigma.report.report import NAMES, render, write_report

STEP = {"progress/step": 1, "time/step(s)": 1.0}


class _Page(HTMLParser):
    """Tags that were opened but not closed, attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text, self.tags = [], [], "", set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def report(whole_plan, tmp_path):
    return render(collect(whole_plan, tmp_path / "out"))


def test_it_is_whole_and_loads_nothing(report):
    found = _Page(report)
    assert found.open == []
    assert not found.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    names = {name for _, name, _ in found.attributes}
    assert not names & {"src", "href", "data", "action", "srcset"}
    assert not [name for name in names if name.startswith("on")]
    inside = [value for _, name, value in found.attributes if name == "xlink:href"]
    assert inside and all(value.startswith(("#", "data:image/png;base64,")) for value in inside)
    assert "http" not in report and "@import" not in report and len(report) < 1_000_000
    assert report.count("<svg ") == report.count("<figure>") == 19
    assert all(reference.startswith("#") for reference in re.findall(r"url\(([^)]*)\)", report))


def test_it_holds_every_variant_metric_and_number(whole_plan, report, tmp_path):
    data = collect(whole_plan, tmp_path / "out")
    text = _Page(report).text
    for phase in ("quality", "time"):
        for variant in whole_plan.variants:
            assert variant in text
            for name in data.table[phase][variant]:
                assert NAMES.get(name, name) in text
    assert "237.8 to 241.8" in text  # switch's perplexity: 234 + 2 x seed and what is left of 1400 exp(-400 / 60), 1.8
    assert "31.1 MB" in text and "16.6 min" in text
    assert "1.050" in text  # perplexity of the last variant by that of the first: 251.8 / 239.8


def test_it_says_what_was_compared(report):
    text = _Page(report).text
    assert (
        "Phase quality: 4 ranks on 2 nodes of 2, simulated, expert-parallel 4; links between nodes not limited; 400 "
        "steps of 128 tokens; seeds 1, 2, 3." in text
    )
    assert "simulated, expert-parallel 4; links between nodes limited to 200mbit; 60 steps of 128 tokens" in text
    assert "moe.dispatch.type=hierarchical, moe.dispatch.chunks=2, moe.capacity.factor=1.0" in text
    assert "parallel.expert=4" not in text  # all have it
    assert "Times are without the first 5 steps" in text and "Ratios are to switch" in text
    assert "runs are finished" not in text


def test_what_is_not_finished_is_said(make_plan, write_run, tmp_path):
    plan = make_plan()
    write_run(plan.runs[0], [STEP])
    text = _Page(render(collect(plan, tmp_path / "out"))).text
    assert "1 of 2 runs are finished; this report shows those." in text
    assert "the base as it is" not in text and "1 rank on 1 node; 10 steps" in text
    assert "Bytes sent in a step: not drawn, because no run here has counted bytes." in text


def test_ranks_of_one_machine_may_play_several_nodes(make_plan, write_run, tmp_path):
    nodes = {"parallel.expert": 4, "parallel.ranks_per_node": 2}
    plan = make_plan(cluster={"nodes": 1, "ranks_per_node": 4}, base_overrides=nodes)
    for run in plan.runs:
        write_run(run, [STEP])
    text = _Page(render(collect(plan, tmp_path / "out"))).text
    assert text.count("4 ranks on 2 nodes of 2, expert-parallel 4") == 2  # what was compared, and the facts
    assert "1 node" not in text


def test_runs_of_several_states_of_the_code_are_pointed_out(make_plan, write_run, tmp_path):
    plan = make_plan()
    for run, code in zip(plan.runs, ("0123456789ab", "ba9876543210")):
        write_run(run, [STEP], summary={"router": "x", "code": code})
    assert (
        "2 states of the code (0123456789ab: 1, ba9876543210: 1)" in _Page(render(collect(plan, tmp_path / "out"))).text
    )


def test_names_and_values_are_escaped(make_plan, write_run, tmp_path):
    plan = make_plan(
        base_overrides={"data.path": "a<script>b"}, variants={"a": {"data.path": "<script>alert(1)</script>"}, "b": {}}
    )
    for run in plan.runs:
        write_run(run, [{**STEP, "moe/<i>odd</i>": 1.0}])
    report = render(collect(plan, tmp_path / "out"))
    assert "<script" not in report and "<i>" not in report
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in report and "moe/&lt;i&gt;odd&lt;/i&gt;" in report


def test_a_new_report_replaces_the_old(whole_plan, report, tmp_path):
    (tmp_path / "report.html").write_text('<meta name="generator" content="pangu-sigma">old')
    assert write_report(collect(whole_plan, tmp_path / "out"), tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report


# ---- in a browser

GROUND = {"light": (0xFB, 0xFB, 0xFA), "dark": (0x16, 0x18, 0x1C)}


@pytest.fixture
def written(whole_plan, tmp_path):
    return write_report(collect(whole_plan, tmp_path / "out"), tmp_path)


@pytest.mark.parametrize(
    ("width", "height", "scheme"), [(1280, 1800, "light"), (400, 3200, "light"), (1280, 1800, "dark")]
)
def test_it_is_drawn(browse, written, tmp_path, width, height, scheme):
    """The ground has the scheme's colour; the bars of the first variants, at their place in the page, have theirs."""
    shot = tmp_path / "shot.png"
    browse(
        written,
        f"--screenshot={shot}",
        f"--window-size={width},{height}",
        f"--blink-settings=preferredColorScheme={('dark', 'light').index(scheme)}",
    )
    image = np.asarray(Image.open(shot).convert("RGB"))
    assert image.shape == (height, width, 3)
    assert tuple(image[2, 2]) == GROUND[scheme]
    seen = {f"{colour:06x}" for colour in np.unique(image.astype(np.int32) @ (1 << 16, 1 << 8, 1))}
    bars = {"light": ("2a6fc9", "d9622b", "12926a"), "dark": ("6aa5f2", "f08a5a", "42c296")}[scheme]
    assert set(bars) <= seen


def test_it_fits_and_can_be_read(measure, written):
    """No text is cut off, lies over another or is lower than 11 pixels, the page does not scroll sideways and loads
    nothing.
    """
    for width, found in zip((1280, 390), measure(written.read_text(encoding="utf-8"), (1280, 390))):
        headings = found.pop("figures")
        assert found == {"width": width, "out": [], "overlapping": [], "leaving": [], "small": 0, "requests": 0}
        assert headings == [
            "Step time",
            "What a step waits for",
            "Where a step's time goes",
            "Tokens a second over steps",
            "Training loss over steps",
            "Validation perplexity over steps",
            "Validation perplexity over time",
            "Quality against step time",
            "Quality against bytes between nodes",
            "Capacity against perplexity",
            "Bytes sent in a step",
            "Bytes that each node's link carried",
            "Tokens dropped over steps",
            "Tokens kept on their own node over steps",
            "Load balance over steps",
            "Which experts the tokens go to, over training",
            "Angles between tokens, and between tokens and gates",
            "Gradient norm over steps",
            "Learning rate over steps",
        ]
