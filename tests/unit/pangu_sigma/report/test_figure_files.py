"""Figures as files: what is written, that it is ours and the same each time, and what is refused."""

import csv
import sys
import warnings

import pytest
from PIL import Image  # comes with MindSpore

from locmoe_ops.errors import InputError
from pangu_sigma.cli.main import main
from pangu_sigma.report import labels
from pangu_sigma.report.figure_files import PNG_DPI, csv_text, figure_bytes
from pangu_sigma.report.plot import WIDTH_IN
from pangu_sigma.report.specs import Bar, Bars, Curve, Curves, FigureSpec, HeatMap, HeatMaps, Panels

CURVES = Curves([Curve("\u4e13\u5bb6", 0, [1, 2], [0.1, 0.2], [0.05, 0.1], [0.2, 0.3]), Curve("b", 1, [1], [7.0])],
                "steps", "loss (nats)")  # fmt: skip


def step(number, **more):
    return {"progress/step": number, "time/step(s)": 1.0 + 0.125 * number, "loss/task": 7.0 - number, **more}


@pytest.fixture
def run(write_run_folder):
    return write_run_folder("run", [step(number) for number in range(1, 11)], finished=True)


def test_each_format_and_a_table_beside_it(run, tmp_path, capsys):
    folder = tmp_path / "new" / "figures"
    assert main(["report", str(run), "--figures", str(folder), "--format", "pdf,svg,png"]) == 0
    names = {path.name for path in folder.iterdir()}
    assert {f"training_loss.{kind}" for kind in ("pdf", "svg", "png", "csv")} <= names and len(names) == 2 * 4
    assert f"figures: 6 files and their tables in {folder}" in capsys.readouterr().out
    assert (folder / "training_loss.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(folder / "training_loss.png") as image:
        assert image.width == pytest.approx(WIDTH_IN * PNG_DPI, abs=1)
    rows = list(csv.reader((folder / "training_loss.csv").open(encoding="utf-8")))
    assert rows[0] == ["variant", "optimizer steps", "training loss (nats/token)", "lowest seed", "highest seed"]
    assert [float(row[2]) for row in rows[1:]] == [7.0 - number for number in range(1, 11)]
    assert "<text" not in (folder / "training_loss.svg").read_text()  # paths: it needs no font


@pytest.mark.parametrize(("name", "warns"), [("\u4e13\u5bb6", True), ("locmoe", False)])
def test_characters_that_no_font_has_are_told_once(write_run_folder, tmp_path, capsys, monkeypatch, name, warns):
    monkeypatch.setattr(labels, "_others", lambda missing: labels.Fonts((), "".join(sorted(missing))))
    run = write_run_folder(name, [step(number) for number in range(1, 11)], finished=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's own, one for each character and figure
        assert main(["report", str(run), "--figures", str(tmp_path / "f"), "--format", "pdf,svg,png"]) == 0
    said = capsys.readouterr().err
    assert said.count("warning") == warns and ("no installed font has the characters \u4e13\u5bb6, " in said) == warns


def test_a_second_time_gives_the_same_files(run, tmp_path):
    found = []
    for _ in range(2):
        assert main(["report", str(run), "--figures", str(tmp_path / "f"), "--format", "svg,pdf,png"]) == 0
        found.append({path.name: path.read_bytes() for path in (tmp_path / "f").iterdir()})
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["training_loss.pdf", "training_loss.csv", "step_time.pdf"])
def test_what_another_wrote_is_left_alone(run, tmp_path, capsys, name):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / name).write_bytes(b"%PDF-1.4 of somebody else" * 1000)
    assert main(["report", str(run), "--figures", str(tmp_path / "f")]) == 2
    assert f"{name}: is there already, and pangu-sigma did not write it" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "f").iterdir()] == [name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--figures", "f", "--format", "jpg"], "--format: found 'jpg', expected some of pdf, svg, png"),
        (["--figures", "f", "--format", "pdf,,bmp"], "--format: found 'bmp'"),
        (["--figures", "f", "--format", ""], "--format: found ''"),
        (["--format", "pdf"], "--format is of files of figures; expected --figures DIR with it"),
    ],
)
def test_wrong_options(run, words, message, capsys):
    assert main(["report", str(run), *words]) == 2
    assert message in capsys.readouterr().err and not (run / "report.html").exists()


def test_without_matplotlib_figures_are_refused_and_tables_stay(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(run), "--figures", "f"]) == 2
    assert "matplotlib is not installed" in capsys.readouterr().err
    assert main(["report", str(run)]) == 0
    html = (run / "report.html").read_text()
    assert "Figures are not drawn, because matplotlib is not installed: pip install" in html
    assert "<svg" not in html and "step time" in html


def test_a_folder_that_cannot_be_made(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["report", str(run), "--figures", str(tmp_path / "file" / "f")]) == 2
    assert "--figures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (
            CURVES,
            ["variant,steps,loss (nats),lowest seed,highest seed", "\u4e13\u5bb6,1,0.1,0.05,0.2",
             "\u4e13\u5bb6,2,0.2,0.1,0.3", "b,1,7.0,,"],
        ),
        (Panels([("a", CURVES)]), ["variant,variant,steps,loss (nats),lowest seed,highest seed",
                                   "a,\u4e13\u5bb6,1,0.1,0.05,0.2", "a,\u4e13\u5bb6,2,0.2,0.1,0.3", "a,b,1,7.0,,"]),
        (Bars([Bar("a", [1.5, 2.0], "", 0)], "s", ("x", "y")), ["bar,x: s,y: s", "a,1.5,2.0"]),
        (
            Bars([Bar("a", [1.5], "", 0, 1.0, 2.0), Bar("b", [1.0], "")], "s"),
            ["bar,s,lowest seed,highest seed", "a,1.5,1.0,2.0", "b,1.0,,"],
        ),
        (
            HeatMaps([HeatMap("a", [[0.5, 1.0]], [0, 5, 9])], "steps", "expert", "load", 2.0),
            ["variant,expert,\"steps, from\",\"steps, to\",load", "a,0,0,5,0.5", "a,0,5,9,1.0"],
        ),
    ],
)  # fmt: skip
def test_tables_hold_what_is_drawn(content, lines):
    assert csv_text(FigureSpec("x", "x", "x", content)).splitlines() == lines


@pytest.mark.parametrize("kind", ["pdf", "svg", "png"])
def test_names_in_any_script_are_drawn_without_a_complaint(kind, recwarn):
    assert figure_bytes(FigureSpec("x", "x", "x", CURVES), kind)
    assert not [str(one.message) for one in recwarn if "lyph" in str(one.message)]


def test_an_unknown_format_is_no_error_of_another_kind():
    from pangu_sigma.report.figure_files import check_formats

    assert check_formats("png, pdf,png") == ("png", "pdf")
    with pytest.raises(InputError, match="separated by commas"):
        check_formats("pdf;svg")
