"""The page of run folders: any runs, at any moment, and how it follows them."""

import re

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.cli.main import main
from pangu_sigma.report import runs as page
from pangu_sigma.report.collect import STEP as TIME
from pangu_sigma.report.folder import RunFolder


def step(number, seconds=1.0, **more):
    return {"progress/step": number, TIME: seconds, "loss/task": 7.0, **more}


def text(path):
    return re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf-8"))


def test_runs_beside_the_first(write_run_folder, made_up_records, made_up_cosines, tmp_path, capsys):
    """In the made-up runs a step takes 1.93 and 1.73 s and 0 to 0.06 more; the folders, routers and seeds differ."""
    first = write_run_folder("runs/switch", made_up_records(0, 1, 40), True, made_up_cosines(0), train__steps=40)
    second = write_run_folder(
        "runs/hash/again", made_up_records(1, 1, 30), train__steps=40, train__seed=2, moe__num_experts=4
    )
    assert main(["report", str(first), str(second)]) == 0
    path = tmp_path / "runs" / "report.html"
    assert capsys.readouterr().out.startswith("report: ") and path.is_file()
    html, found = path.read_text(encoding="utf-8"), text(path)
    assert "http-equiv" not in html
    assert "<title>Runs: switch, hash/again</title>" in html and "/ switch&#x27;s" in html
    assert (
        "1 of 2 runs are finished" in found
        and "finished: 40 steps" in found
        and "step 30 of 40, written 2023-11-1" in found
    )
    assert (
        "train.seed=2, moe" not in found
        and "moe.num_experts=4, train.seed=2" in found
        and "moe.num_experts=8, train.seed=1" in found
    )
    assert "output_dir" not in found
    ratios = [float(value) for value in re.findall(r"0\.8\d\d", found)]
    assert any(abs(ratio - 1.76 / 1.96) < 2e-3 for ratio in ratios)
    assert re.findall(r"(\w[\w ]+): not drawn", found.replace("&#x27;", "")) == [
        "Capacity against perplexity",
        "Bytes that each nodes link carried",
    ]


def test_a_run_that_diverged_beside_one_that_did_not(write_run_folder, tmp_path):
    """Its last finite validation, 9, was the best of all."""
    good = write_run_folder(
        "runs/good", [step(1), step(2, **{"valid/loss": 3.0, "valid/perplexity": 20.0})], True, train__steps=2
    )
    ruined = write_run_folder(
        "runs/ruined", [step(1, **{"valid/loss": 2.2, "valid/perplexity": 9.0}), step(2, **{"loss/total": None})]
    )
    (ruined / "summary.json").write_text(
        '{"router": "x", "unigram_perplexity": 900.0, "status": "diverged", "progress/step": 2}'
    )
    found = text(page.report([str(good), str(ruined)], str(tmp_path / "page.html")))
    assert "diverged: ended after step 2 of 10" in found and "runs are finished" not in found
    assert re.search(r"ruined +1 s +1.000 +diverged +diverged ", found) and re.search(
        r"good +1 s +1.000 +20 +1.000 ", found
    )


@pytest.mark.parametrize(
    "records", [[], [step(1)], [{"progress/step": 1}], [step(1, float("nan"), **{"valid/perplexity": float("inf")})]]
)
def test_a_run_that_has_hardly_begun(write_run_folder, records, tmp_path, recwarn):
    folder = write_run_folder("run", records)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"progress/step": 2, "loss/ta')
    path = page.report([str(folder)], str(tmp_path / "new" / "page.html"))
    assert path == tmp_path / "new" / "page.html"
    assert "<title>Run: run</title>" in path.read_text() and "The run is not finished" in text(path)
    assert ("no step of 10 yet" in text(path)) == (not records) and "nan" not in text(path)
    assert not list(recwarn)  # none of matplotlib's


def test_it_is_followed_to_its_end(write_run_folder, monkeypatch, capsys):
    """Each pause adds a step: the page reloads itself until the last step and the summary are there."""
    folder, pauses, pages = write_run_folder("run", [step(1)], train__steps=3), [], []

    def pause(seconds):
        pauses.append(seconds)
        pages.append((folder / "report.html").read_text())
        done = 1 + len(pauses)
        write_run_folder("run", [step(number) for number in range(1, done + 1)], finished=done == 3, train__steps=3)
        (folder / "metrics.jsonl").touch()

    monkeypatch.setattr(page.time, "sleep", pause)
    monkeypatch.setattr(page.time, "monotonic", iter((0.0, 2.0, 2.0, 2.1, 3.0, 3.1)).__next__)
    assert main(["report", str(folder), "--follow"]) == 0
    assert pauses == [18.0, page.REFRESH_S]  # a page that took 2 s to draw is drawn a tenth of the time
    assert all('<meta http-equiv="refresh" content="5">' in one for one in pages)
    assert "step 1 of 3" in pages[0] and "step 2 of 3" in pages[1]
    last = (folder / "report.html").read_text()
    assert "http-equiv" not in last and "finished: 3 steps" in last
    assert "Ctrl-C ends it" in capsys.readouterr().out


def test_an_interrupted_page_no_longer_reloads_itself(write_run_folder, monkeypatch):
    folder = write_run_folder("run", [step(1)])

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(page.time, "sleep", interrupt)
    assert main(["report", str(folder), "--follow"]) == 130
    assert "http-equiv" not in (folder / "report.html").read_text()


def test_short_names(tmp_path):
    names = [
        page.short_names([tmp_path / place for place in places])
        for places in (["runs/a"], ["runs/a", "runs/b"], ["x/hash/seed_1", "x/switch/seed_1"], ["a", "a/b"])
    ]
    assert names == [["a"], ["a", "b"], ["hash/seed_1", "switch/seed_1"], ["a", "b"]]


def test_wrong_runs(write_run_folder, tmp_path):
    folder = str(write_run_folder("run", [step(1)]))
    with pytest.raises(InputError, match="are the same folder"):
        page.report([folder, f"{folder}/../run"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output .*cannot be written"):
        page.report([folder], str(tmp_path / "file" / "page.html"))


def test_nothing_in_a_run_is_markup(write_run_folder):
    folder = write_run_folder("<b>run</b>", [step(1, **{"moe/<i>odd</i>": 1.0})], data__path="<script>")
    other = write_run_folder("other", [step(1)])
    states = [RunFolder(str(place)).read() for place in (folder, other)]
    html = page.render(states)
    assert "<b>" not in html and "<i>" not in html and "<script" not in html and "data.path=&lt;script&gt;" in html


def test_it_fits_a_phone_while_a_run_goes_on(write_run_folder, made_up_records, made_up_cosines, measure):
    """Long names and other scripts included; the page that reloads itself loads nothing else."""
    folders = [
        write_run_folder(
            "runs/WMWM/a_long_name_of_a_run_folder_that_somebody_made_up_WMWMWMWM", made_up_records(0, 1, 40)
        ),
        write_run_folder(
            "runs/\u6df7\u5408\u4e13\u5bb6/\u54c8\u5e0c",
            made_up_records(1, 1, 60),
            True,
            made_up_cosines(1),
            train__steps=60,
            moe__num_experts=16,
        ),
    ]
    html = page.render([RunFolder(str(folder)).read() for folder in folders], refresh_s=60)
    for width, found in zip((1280, 390), measure(html, (1280, 390))):
        assert "Training loss over steps" in found.pop("figures")
        assert found == {"width": width, "out": [], "overlapping": [], "leaving": [], "small": 0, "requests": 0}
