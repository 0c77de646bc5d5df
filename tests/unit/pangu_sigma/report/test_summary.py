"""Finished runs side by side: the table, the combined file, and what is wrong with a damaged summary."""

import json
import subprocess
import sys

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.cli import main as cli
from pangu_sigma.report.summary import RunSummary, combine, read_summary, summarise_runs, table

METRICS = {
    "valid/perplexity": 312.04,
    "throughput/tokens_per_second": 2345.6,
    "moe/local_fraction": 0.5,
    "moe/drop_fraction": 0.0214,
    "moe/load_max_over_mean": 1.456,
    "moe/tokens_per_expert": [[1.0, 2.0]],
    "comm/inter_node(B)": 25_502_480.0,
    "comm/all_to_all/inter_node(B)": 999.0,
}


@pytest.fixture
def write_run(tmp_path):
    """Writes a run directory's summary; a text is written as it is. Returns the directory."""

    def _write(name, content=None, **changed):
        folder = tmp_path / name
        folder.mkdir()
        if content is None:
            content = json.dumps({"router": name, "unigram_perplexity": 1248.16, **METRICS, **changed})
        (folder / "summary.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(folder)

    return _write


def _run(router, unigram=1000.0, **metrics):
    return RunSummary(f"runs/{router}", router, unigram, metrics)


def test_each_metric_stands_in_its_column(write_run, capsys):
    summarise_runs([write_run("hash"), write_run("switch", **{"valid/perplexity": 624.08})])
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["hash", "312.0", "2346", "50.0%", "2.1%", "1.46", "25.5", "MB", "999", "B"]
    assert lines[4].split()[:2] == ["switch", "624.1"]
    ends = [lines[3].index(cell) + len(cell) for cell in ("312.0", "2346", "50.0%", "2.1%", "1.46", "25.5 MB", "999 B")]
    # Headers are right-aligned over their columns.
    for end, header in zip(ends, ("perplexity", "per s", "own node", "tokens", "/ mean", "nodes", "tokens")):
        assert lines[1][:end].endswith(header)
    # 312.04 and 624.08 are a quarter and half of 1248.16.
    assert lines[6] == "Unigram perplexity 1248.2; ratio to it: hash 0.25, switch 0.50"


def test_the_table_fits_a_terminal_at_its_widest():
    widest = {
        "valid/perplexity": 99999.94,
        "throughput/tokens_per_second": 999999.0,
        "moe/local_fraction": 1.0,
        "moe/drop_fraction": 1.0,
        "moe/load_max_over_mean": 640.0,
        "comm/inter_node(B)": 999.9e9,
        "comm/all_to_all/inter_node(B)": 999.9e9,
    }
    runs = [_run(f"routing{number}", **widest) for number in range(7)]
    assert max(len(line) for line in table(runs).splitlines()) <= 79


def test_a_dense_run_without_validation_shows_what_it_has():
    text = table([_run("hash", unigram=None, **{"throughput/tokens_per_second": 10.0, "moe/drop_fraction": None})])
    assert text.splitlines()[3].split() == ["hash", "-", "10", "-", "-", "-", "-", "-"]
    assert "Unigram" not in text


# What the run's own summary says, null now, and in older versions NaN, infinity, or what sums that had wrapped gave.
@pytest.mark.parametrize("found", ["null", "NaN", "Infinity", "1.0142320547350045e+304", "0.0"])
def test_a_run_that_diverged_is_shown_so_and_never_as_a_number(write_run, tmp_path, capsys, found):
    text = json.dumps(
        {"router": "switch", "unigram_perplexity": 1248.16, "status": "diverged", **METRICS, "valid/perplexity": "HERE"}
    )
    folders = [write_run("hash"), write_run("switch", text.replace('"HERE"', found))]
    summarise_runs(folders, str(tmp_path / "all.json"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].split()[:2] == ["switch", "diverged"] and max(map(len, lines)) <= 79
    assert "ratio to it: hash 0.25, switch diverged" in lines[6]
    routers = json.loads((tmp_path / "all.json").read_text(), parse_constant=pytest.fail)["routers"]
    assert routers["switch"]["valid/perplexity"] is None and routers["hash"]["valid/perplexity"] == 312.04


def test_runs_without_perplexity_still_show_the_unigram_line():
    assert "\nUnigram perplexity 1000.0\n" in table([_run("hash")])


def test_the_combined_file_holds_every_metric_by_router(write_run, tmp_path):
    output = tmp_path / "new" / "all.json"
    summarise_runs([write_run("hash"), write_run("locmoe", **{"moe/drop_fraction": 0})], str(output))
    assert json.loads(output.read_text()) == {
        "unigram_perplexity": 1248.16,
        "routers": {"hash": METRICS, "locmoe": {**METRICS, "moe/drop_fraction": 0}},
    }
    assert [path.name for path in output.parent.iterdir()] == ["all.json"]


def test_combining_leaves_the_router_and_unigram_out_of_its_metrics():
    assert combine([_run("hash", a=1)]) == {"unigram_perplexity": 1000.0, "routers": {"hash": {"a": 1}}}


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("", "is not JSON"),
        ('{"router": "ha', "is not JSON"),
        (b'{"router": "\xff"}', "is not JSON"),
        ("[1]", "found no mapping"),
        ("{}", "field `router` is null"),
        ('{"router": 3}', "field `router` is 3"),
        ('{"router": "hash", "unigram_perplexity": "many"}', 'field `unigram_perplexity` is "many"'),
        ('{"router": "hash", "valid/perplexity": true}', "field `valid/perplexity` is true"),
        ('{"router": "hash", "comm/inter_node(B)": [1]}', "field `comm/inter_node(B)` is [1]"),
        ('{"router": "hash", "moe/drop_fraction": -0.5}', "field `moe/drop_fraction` is -0.5"),
    ],
)
def test_a_damaged_summary_is_named(write_run, content, fragment):
    folder = write_run("hash", content)
    with pytest.raises(InputError) as error:
        read_summary(folder)
    assert str(error.value).startswith(f"{folder}/summary.json: ")
    assert fragment in str(error.value)


def test_an_unfinished_run_is_named(tmp_path):
    with pytest.raises(InputError, match="summary.json: is missing; expected the run directory of a finished run"):
        read_summary(str(tmp_path))


def test_two_runs_of_one_router_are_refused(write_run, tmp_path):
    first, second = write_run("a", router="hash"), write_run("b", router="hash")
    with pytest.raises(InputError) as error:
        summarise_runs([first, second], str(tmp_path / "all.json"))
    assert str(error.value).startswith(f"{first} and {second} are both runs of router hash")
    assert not (tmp_path / "all.json").exists()


def test_runs_of_different_text_are_refused(write_run):
    with pytest.raises(InputError, match="validated on different text .unigram perplexity 1248.16 and 900.0."):
        summarise_runs([write_run("hash"), write_run("switch", unigram_perplexity=900.0)])


def test_an_unwritable_output_is_named_and_leaves_nothing(write_run, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="--output .*taken: cannot be written"):
        summarise_runs([write_run("hash")], str(tmp_path / "taken"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hash", "taken"]


def test_the_command_needs_no_mindspore_and_ends_with_its_status(write_run, tmp_path, capsys):
    program = (
        "import sys; from pangu_sigma.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0; sys.exit('mindspore' in sys.modules)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "summary",
            write_run("hash"),
            write_run("switch"),
            "--output",
            str(tmp_path / "all.json"),
        ],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "switch" in done.stdout and (tmp_path / "all.json").exists()
    assert cli.main(["summary", str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.startswith(f"pangu-sigma: error: {tmp_path}/absent/summary.json: is missing")
