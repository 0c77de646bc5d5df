"""What is said of Ascend says how it is known: measured, compiled, predicted, assumed, or read in a document or source;
and the figures that pages and configurations give of plans are those of plans.

Nothing was run on a device, so that a sentence without such a word claims too much. A page may say it at its head for
all of it, a module in its docstring.
"""

import ast
import re
import shlex
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import pytest

from pangu_sigma.config.load import load_config
from pangu_sigma.planner.cluster import cluster_of
from pangu_sigma.planner.plan import make_plan

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted([*REPOSITORY.glob("README*.md"), *(REPOSITORY / "docs").rglob("*.md")])
CONFIGS = sorted((REPOSITORY / "configs" / "ascend").glob("*.yaml"))
MODULES = sorted(
    path for folder in ("pangu_sigma", "locmoe_ops", "scripts") for path in (REPOSITORY / folder).rglob("*.py")
)
NAMED = re.compile(r"\b(Ascend|910[ABC]|HCCL|CANN|NPUs?)\b|昇腾")
MARK = re.compile(
    r"\b(measured|compile[ds]?|exported|predict\w+|by plan|assum\w+|inferred|document\w*|third party|read (in|off)|"
    r"(not|never|none was|nothing was|could not be) (run|tried|seen|measured))\b|needs Ascend|[Ss]ource|warning of|"
    r"未测量|未试过|从未运行|没有昇腾设备|编译|预测|实测|假设|读自|文档|需要昇腾|没有在设备上",
    re.IGNORECASE,
)
CLAIM = re.compile(r"\bon (Ascend|910[ABC]|a device)\b|\bHCCL (gives|forbids|has no)\b", re.IGNORECASE)
# Sentences that stood here and were wrong, or claimed what nobody has seen.
GONE = (
    "runs on two backends",
    "运行在两种后端上",
    "fused on Ascend",
    "slow on every backend",
    "one kernel a tensor on every device",
    "HCCL gives each communicator a stream",  # MindSpore does
    "compiler puts collectives on its streams",  # kernel by kernel, the backend does
)


def sections(page):
    """The head of a page, and the text below each further heading."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.split(r"(?m)^(?=##+ )", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_mark_what_they_say_of_ascend(page):
    head, *others = sections(page)
    if not (NAMED.search(head) and MARK.search(head)):
        for section in others:
            title = section.splitlines()[0]
            assert not NAMED.search(section) or MARK.search(section), f"{page.name}, {title}: how is it known?"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_docstrings_mark_what_they_say_of_ascend(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    of_module = ast.get_docstring(tree) or ""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(node) or ""
            assert not CLAIM.search(text) or MARK.search(text + of_module), f"{path}: {text}"


def test_sentences_that_were_wrong_do_not_come_back():
    texts = [*PAGES, *CONFIGS, *MODULES, *(REPOSITORY / "configs").rglob("*.yaml")]
    for path in texts:
        text = " ".join(path.read_text(encoding="utf-8").split())
        assert not [words for words in GONE if words in text], path


# ---- figures of plans


@lru_cache(maxsize=64)
def planned(name, *overrides):
    config = load_config(str(REPOSITORY / "configs" / "ascend" / name), list(overrides))
    return make_plan(config, cluster_of(config, None, None, None))


def shown(value):
    """As pages have it: two digits below 1, else one behind the point."""
    return f"{value:.2f}" if value < 1 else f"{value:.1f}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_headers_have_the_plans_figures(path):
    """A header says `N GB of M by plan`, with what else it plans for."""
    lines = takewhile(lambda line: line.startswith("#"), path.open(encoding="utf-8"))
    header = re.sub(r"\s*\n# ?", " ", "".join(lines))
    assert MARK.search(header)
    found = re.findall(r"(\d+) GB of (\d+) by plan", header)
    plan = planned(path.name)
    assert found == [(f"{plan.memory.total / 1e9:.0f}", f"{plan.capacity / 1e9:.0f}")], header


def table(page, first):
    """Rows of the table whose heading begins with `first`, as lists of cells."""
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    (rows,) = re.findall(rf"(?m)^\| {re.escape(first)}.*\n\|[-|]+\n((?:\|.*\n)+)", text)
    return [re.split(r"\s*\|\s*", row.strip())[1:-1] for row in rows.splitlines()]


def test_the_table_of_configurations():
    rows = table("ascend.md", "configuration")
    assert {row[0].split("`")[1] for row in rows} == {path.name for path in CONFIGS}
    for name, devices, memory, step in rows:
        plan = planned(name.split("`")[1])
        ranks = plan.job.topology.world_size
        assert devices.replace("B", "b").replace("A", "a") == f"{ranks} x {plan.hardware.chip}"
        assert memory == f"{plan.memory.total / 1e9:.1f} of {plan.capacity / 1e9:.0f}", name
        assert step == shown(plan.time.total), name


def test_the_way_to_the_goal():
    """Every row of the table in planner.md is what a plan with its keys says; what bounds the last fits the text."""
    rows = table("planner.md", "step of the way")
    assert len(rows) >= 8
    for _, keys, memory, *seconds, mfu in rows:
        plan = planned("pangu_sigma_38b_128.yaml", *re.findall(r"`([^`]+)`", keys))
        time, causes = plan.time, plan.time.causes
        terms = (time.compute, time.parameters, time.launch, causes["all_to_all"], causes["gradient"])
        rest = (causes["tensor"], causes["other"], sum(time.hidden.values()), time.total)
        assert seconds == [f"{value:.2f}" for value in (*terms, *rest)], keys
        assert (memory, mfu) == (f"{plan.memory.total / 1e9:.1f}", f"{plan.mfu:.1%}".replace("%", " %")), keys
        assert plan.fits, keys


def test_what_is_predicted_of_the_papers_job():
    """The four plans of planner.md, by the commands that stand above the table, and shares and savings from them."""
    text = (REPOSITORY / "docs" / "planner.md").read_text(encoding="utf-8")
    found = {name: shlex.split(words)[1::2] for name, words in re.findall(r'(?m)^(paper|baseline)="([^"]*)"', text)}
    shares, saved = {}, {}
    for ranks in (128, 256):
        name = f"pangu_sigma_38b_{ranks}.yaml"
        switch = planned(name, *found["paper"], *found["baseline"])
        shares[str(ranks)] = f"{100 * switch.time.all_to_all_share:.1f} %"
        saved[str(ranks)] = f"{100 * (1 - planned(name, *found['paper']).time.total / switch.time.total):.1f} %"
    cells = {row[0]: row[2] for row in table("planner.md", "| reported")}
    for ranks, share in shares.items():
        assert cells[f"share of all-to-all, switch, {ranks} NPUs"] == share
    expected = ", ".join(f"{value} ({ranks})" for ranks, value in saved.items())
    assert cells["LocMoE's step shorter than switch's"] == expected


def test_the_first_twenty_steps():
    """What ascend.md expects of the first job is its plan: times, speed, memory without runtime, groups and margin."""
    plan = planned("pangu_sigma_small_8.yaml")
    text = (REPOSITORY / "docs" / "ascend.md").read_text(encoding="utf-8")
    values = dict(re.findall(r"\| `((?:time|throughput|memory)/[^`]+)` \| (?:at most )?([\d.,]+)", text))
    held = plan.memory.total - plan.memory.reserved - plan.memory.margin
    assert values == {
        "time/step(s)": f"{plan.time.total:.3f}",
        "throughput/mfu": f"{plan.mfu:.2f}",
        "throughput/tokens_per_second": f"{plan.tokens_per_second:,.0f}"[:-3] + "000",
        "memory/device_peak(B)": f"{held / 1e9:.1f}",
    }
