"""docs/report.md, and its Chinese, explain all that a report, the table and the terminal show."""

import html
import re
from pathlib import Path

import pytest

from pangu_sigma.report import terminal
from pangu_sigma.report.collect import collect
from pangu_sigma.report.folder import RunFolder
from pangu_sigma.report.report import NAMES, render
from pangu_sigma.report.runs import render as render_runs
from pangu_sigma.report.summary import COLUMNS

DOCS = Path(__file__).resolve().parents[4] / "docs"
RECORD = {
    "progress/step": 10,
    "loss/task": 5.25,
    "loss/total": 5.25,
    "optim/learning_rate": 2.5e-3,
    "optim/grad_norm": 1.5,
    "valid/perplexity": 300.0,
    "time/step(s)": 2.0,
    "time/compute(s)": 1.2,
    "time/communication(s)": 0.8,
    "time/overlapped(s)": 0.4,
    "time/idle(s)": 0.4,
    "throughput/tokens_per_second": 1234.5,
    "comm/intra_node(B)": 22.7e6,
    "comm/inter_node(B)": 14.9e6,
    "moe/drop_fraction": 0.069,
    "moe/local_fraction": 0.498,
    "moe/load_max_over_mean": 1.86,
    "moe/tokens_per_expert": [[4, 4, 4, 4], [16, 0, 0, 0]],
}


@pytest.fixture(params=["report.md", "zh/report.md"])
def guide(request):
    """The page without the outputs that it quotes."""
    return re.sub(r"```.*?```", "", (DOCS / request.param).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_every_figure_and_section(guide, whole_plan, tmp_path, write_run_folder):
    shown = render(collect(whole_plan, tmp_path / "out"))
    shown += render_runs([RunFolder(str(write_run_folder("one", [RECORD]))).read()])
    figures = re.findall(r"<h3>([^<]+)</h3>", shown)
    figures += re.findall(r'<p class="note">([^<:]+): not drawn, because', shown)
    sections = re.findall(r"<h2>([^<]+)</h2>", shown)
    assert len(set(figures)) >= 10 and len(set(sections)) >= 6
    for title in {html.unescape(text) for text in figures + sections if not text.endswith(" runs")}:
        assert title in guide, f"docs/report.md does not explain: {title}"


def test_every_row_that_has_a_name_of_its_own(guide):
    for name in NAMES.values():
        assert name in guide, name


def test_every_column_of_the_summary(guide):
    for column in COLUMNS:
        assert column.header.replace("\n", " ").replace(" / ", "/").lower() in guide.replace(" / ", "/"), column.header


def test_every_line_of_watch(guide, write_run_folder):
    lines = terminal.view(RunFolder(str(write_run_folder("run", [RECORD]))).read(), 0.0).splitlines()[3:]
    words = {line.split()[0] for line in lines if line[:1].strip()}
    assert len(words) >= 8
    for word in words:
        assert f"`{word}`" in guide, word
