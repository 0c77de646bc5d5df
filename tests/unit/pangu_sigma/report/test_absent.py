"""Readers of runs whose records lack what cannot occur in them: nothing stands in for it, least of all a zero."""

import re

import pytest

from locmoe_ops.topology import Topology
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.metrics.conditions import RunFacts
from pangu_sigma.metrics.definitions import DEFINITIONS, left_out
from pangu_sigma.report import runs as page
from pangu_sigma.report import terminal
from pangu_sigma.report.folder import RunFolder
from pangu_sigma.report.summary import RunSummary, table

LISTS = {
    "moe/tokens_per_expert": [[3, 5]],
    "moe/local_fraction_by_layer": [0.5],
    "progress/step": 1,
    "time/unix": 1.7e9,
}


def records_of(facts, steps=4):
    """Of `steps` steps, with all that such a run can have in a step: 1, but for what is no fraction, and lists."""
    absent = left_out(facts)
    names = [name for name, one in DEFINITIONS.items() if one.when != "summary.json" and name not in absent]
    names = [name for name in names if not DEFINITIONS[name].when.startswith("summary.json")]
    return [
        {**{name: LISTS.get(name, 1.0) for name in names}, "progress/step": step, "valid/perplexity": 30.0}
        for step in range(1, steps + 1)
    ]


JOBS = {
    "one process": ({"moe": {"router": {"type": "hash"}}}, Topology(1, 1), True),
    "a dense network": ({"model": {"sparse_layers": 0}}, Topology(1, 1), True),
    "one node": ({"parallel": {"expert": 2}}, Topology(2, 2, 2), True),
    "a rank a node": ({"parallel": {"expert": 2}, "moe": {"dispatch": {"type": "ragged"}}}, Topology(2, 1, 2), True),
    "a backend that counts nothing": ({"parallel": {"expert": 8}}, Topology(8, 4, 8), False),
}
SHOWN = {
    "one process": {"dropped"},
    "a dense network": set(),
    "one node": {"inside nodes", "dropped", "communicate"},
    "a rank a node": {"between nodes", "kept on own node", "communicate"},
    "a backend that counts nothing": {"dropped", "kept on own node"},
}


@pytest.fixture(params=list(JOBS))
def job(request):
    sections, topology, counted = JOBS[request.param]
    return request.param, RunFacts(config_from_dict(sections), topology, topology, not counted, counted)


def test_watch_shows_what_there_is(job, write_run_folder):
    name, facts = job
    folder = write_run_folder("run", records_of(facts), train__steps=4)
    found = terminal.view(RunFolder(str(folder)).read(), 1_700_000_030)
    words = ("inside nodes", "between nodes", "dropped", "kept on own node", "communicate")
    assert {word for word in words if word in found} == SHOWN[name]
    assert max(map(len, found.splitlines())) <= 79


def test_the_page_says_what_was_not_measured(job, write_run_folder, tmp_path):
    """A figure without data gives its reason; beside another run, the table has a dash."""
    name, facts = job
    one = write_run_folder("runs/one", records_of(facts), True, train__steps=4)
    other = write_run_folder(
        "runs/other", records_of(RunFacts(facts.config, *[Topology(4, 2, 4)] * 2)), True, train__steps=4
    )
    for folders in ([one], [one, other]):
        html = page.report([str(folder) for folder in folders], str(tmp_path / "page.html")).read_text()
        text = re.sub(r"<[^>]+>", " ", html)
        assert "nan" not in text.lower().split() and "None" not in text.split()
        assert "time/unix" not in text  # a moment, of which there is no mean
    assert "Bytes sent in a step: not drawn" not in text  # the other one has some
    text = re.sub(r"<[^>]+>", " ", page.report([str(one)], str(tmp_path / "page.html")).read_text())
    assert ("Bytes sent in a step: not drawn" in text) == (not SHOWN[name] & {"inside nodes", "between nodes"})


def test_summary_has_a_dash_for_it():
    text = table([RunSummary("run", "hash", 900.0, {"valid/perplexity": 30.0, "throughput/tokens_per_second": 9.0})])
    row = next(line for line in text.splitlines() if line.startswith("hash"))
    assert row.split() == ["hash", "30.0", "9", "-", "-", "-", "-", "-"]
