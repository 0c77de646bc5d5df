"""`pangu-sigma compare` from the command line: what it starts, writes and says, and its exit status."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_sigma.cli import main as cli
from pangu_sigma.compare import runner
from pangu_sigma.report.comparison import folder_of

RECORD = {"progress/step": 1, "time/step(s)": 1.0, "valid/perplexity": 9.0}


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """The runner starts this in place of the launcher; exits with the status in tmp_path/status, if any."""
    script = f"""
        record='{json.dumps(RECORD)}'
        [ ! -e '{tmp_path}/status' ] ||
            {{ echo 'pangu-sigma: error: data: gone' >&2; exit "$(cat '{tmp_path}/status')"; }}
        echo "$record" >"$0/metrics.jsonl"; echo '{{"router": "x"}}' >"$0/summary.json"
    """
    run_all = runner.run_all
    monkeypatch.setattr(
        runner,
        "run_all",
        lambda plan, output: run_all(plan, output, lambda run, base, folder: ["bash", "-c", script, str(folder)]),
    )


def test_runs_tables_and_report(write_plan, stand_in, tmp_path, capsys):
    output = tmp_path / "out"
    assert cli.main(["compare", write_plan(), "--output", str(output)]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == f"report: {output}/report.html" and shown.err == ""
    assert json.loads((output / "summary.json").read_text())["runs"] == {"finished": 2, "planned": 2}
    assert (output / "runs.csv").is_file() and "locmoe" in (output / "report.html").read_text()
    assert sorted(path.name for path in output.iterdir()) == ["report.html", "runs", "runs.csv", "summary.json"]


def test_the_default_folder_is_named_after_the_file(write_plan, stand_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", write_plan()]) == 0
    assert (tmp_path / "runs" / "compare" / "compare" / "report.html").is_file()


@pytest.mark.parametrize("status", [2, 5])
def test_a_failed_run_gives_its_line_and_status(write_plan, stand_in, tmp_path, capsys, status):
    (tmp_path / "status").write_text(str(status))
    assert cli.main(["compare", write_plan(), "--output", str(tmp_path / "out")]) == status
    assert capsys.readouterr().err == "pangu-sigma: error: all/hash/seed_1: data: gone\n"
    assert not (tmp_path / "out" / "report.html").exists()


def test_dry_run_shows_everything_and_starts_nothing(write_plan, write_run, make_plan, stand_in, tmp_path, capsys):
    write_run(make_plan().runs[0], [RECORD])
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["compare", write_plan(), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    first, second = capsys.readouterr().out.split("[2/2] ")
    assert first.startswith("[1/2] all/hash/seed_1 (finished)\n") and second.startswith("all/locmoe/seed_1 (to do)\n")
    command = second.partition("\n")[2]  # to be pasted into a shell, whatever blanks the project's folder has
    shell = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], stdout=subprocess.PIPE, text=True, check=True)
    words = shell.stdout.splitlines()
    run = make_plan().runs[1]
    assert words == runner.command_of(run, words[4], folder_of(tmp_path / "out", run))
    assert command.count("\n") == words.count("--set") + 1  # a line each, which fits 80 columns where a path is short
    assert (
        words[0] == "bash"
        and words[1].endswith("/train_msrun.sh")
        and words[2:4] == ["--ranks-per-node", "1"]
        and Path(words[1]).is_file()
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_report_only_reports_what_there_is(write_plan, write_run, make_plan, stand_in, tmp_path, capsys):
    write_run(make_plan().runs[1], [RECORD])
    assert cli.main(["compare", write_plan(), "--output", str(tmp_path / "out"), "--report-only"]) == 0
    assert "1 of 2 runs are finished" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "runs" / "all" / "hash").exists()


def test_figures_of_what_there_is(write_plan, write_run, make_plan, stand_in, tmp_path, capsys):
    write_run(make_plan().runs[1], [RECORD])
    words = ["compare", write_plan(), "--output", str(tmp_path / "out"), "--report-only"]
    assert cli.main([*words, "--figures", str(tmp_path / "figures"), "--format", "svg"]) == 0
    assert "step_time.svg" in {path.name for path in (tmp_path / "figures").iterdir()}
    assert "and their tables in" in capsys.readouterr().out.splitlines()[-1]
    assert cli.main([*words, "--figures", str(tmp_path / "figures"), "--format", "gif"]) == 2


def test_mindspore_is_not_needed(write_plan, tmp_path):
    program = (
        "import sys; from pangu_sigma.cli.main import main\n"
        "status = main(sys.argv[1:])\n"
        "sys.exit(status or 'mindspore' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "compare", write_plan(), "--output", str(tmp_path / "out"), "--dry-run"]
    )
    assert done.returncode == 0
