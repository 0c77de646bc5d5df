"""Runs that diverge, whole: how they end, what they leave, and what every command then says of them."""

import json
import re

import pytest

from pangu_sigma.cli.main import main

# What the runs below share: short, with a checkpoint and a validation on the way. The rate is reached at step 2. More
# rates, with every router: scripts/check_divergence.py.
COMMON = (
    "train.divergence_patience=4",
    "train.eval_interval=4",
    "checkpoint.interval=1",
    "train.steps=12",
    "train.tensorboard=true",
)
HALF = ("runtime.precision=fp16",)
RUNS = {
    "rate_1": ("optimizer.learning_rate=1.0",),
    "rate_1e30": ("optimizer.learning_rate=1.0e+30",),
    "half_1e30": (*HALF, "optimizer.learning_rate=1.0e+30"),
    "scale": (*HALF, "runtime.loss_scale.initial=1.0e+30"),
}


def strict(text):
    """JSON without the words that it does not have."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def check_files(folder):
    """Every JSON file is one, and no number has hundreds of digits."""
    for path in [*folder.rglob("*.json"), *folder.rglob("*.jsonl")]:
        text = path.read_text(encoding="utf-8")
        for line in text.splitlines() if path.suffix == ".jsonl" else [text]:
            strict(line)
        assert not re.search(r"[0-9]{30}|e\+30[0-9]", text), path


@pytest.fixture(scope="module")
def diverge(train, tmp_path_factory):
    """`diverge(name)`: the run's folder, and what was said on stdout and stderr; each is made once."""
    made = {}

    def run(name, capsys):
        if name not in made:
            with pytest.raises(AssertionError, match="assert 1 == 0"):  # the fixture expects status 0
                train(name, *COMMON, *RUNS[name])
            made[name] = train.root / name, capsys.readouterr()
        return made[name]

    return run


@pytest.mark.parametrize("name", RUNS)
def test_it_ends_with_status_1_and_says_what_there_is_to_say(diverge, capsys, name):
    folder, shown = diverge(name, capsys)
    (error,) = [line for line in shown.err.splitlines() if "error" in line]
    summary = strict((folder / "summary.json").read_text())
    steps = [strict(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first, last = summary["progress/diverged_step"], summary["progress/step"]
    assert last == len(steps) == first + 3 and f"steps {first} to {last}: " in error and "Traceback" not in shown.err
    assert summary["status"] == "diverged" and summary["valid/perplexity"] is None and summary["unigram_perplexity"] > 1
    assert (
        f"at step {summary['progress/last_usable_step']}; " in error and f"{summary['loss/last_usable']:.4g}" in error
    )
    skipped = "nothing was updated" in error  # under losses that were no worse than before: fp16
    assert skipped or "loss diverged" in shown.out
    assert name != "scale" or skipped
    assert "smaller optimizer.learning_rate" in error and (
        "smaller runtime.loss_scale.initial" in error or name != "scale"
    )
    assert not re.search(r"\bnan\b|\binf\b|[0-9]{30}", shown.out + shown.err)
    assert min(record["loss/task"] for record in steps if record["loss/task"] is not None) >= 0.0  # no sum has wrapped
    check_files(folder)
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir() if path.suffix == "")
    if skipped:
        assert kept == [f"step_{last - 2}", f"step_{last - 1}"] and "the newest checkpoint from before is" in error
    else:  # none that was written after the last usable loss
        assert all(int(path[5:]) < summary["progress/last_usable_step"] for path in kept)
        assert ("holds no checkpoint from before" in error) == (not kept)
    assert not (folder / "cosines.json").exists()


def test_it_is_last_in_every_table(train, diverge, capsys, tmp_path):
    good = train("good", "moe.router.type=hash")
    folder, _ = diverge("rate_1e30", capsys)
    capsys.readouterr()
    assert main(["summary", str(folder), str(good), "--output", str(tmp_path / "all.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].split()[:2] == ["switch", "diverged"] and "switch diverged" in lines[6]
    strict((tmp_path / "all.json").read_text())
    assert main(["report", str(good), str(folder), "--output", str(tmp_path / "page.html")]) == 0
    page = re.sub("<[^>]+>", " ", (tmp_path / "page.html").read_text())
    assert re.search(r"rate_1e30 +[\d.]+ \w+ +[\d.]+ +diverged +diverged", page)
    assert not re.search(r"\bnan\b|\binf\b", page)
    capsys.readouterr()
    assert main(["watch", str(folder)]) == 0
    watched = capsys.readouterr().out
    assert "; diverged" in watched and "task diverged" in watched and "perplexity diverged at step 4" in watched


@pytest.fixture(scope="module")
def ruined(train):
    """A run that nobody stopped, with the checkpoint that it left: weights of about 1e30, scores of NaN."""
    folder = train("regardless", "train.divergence_patience=0", "optimizer.learning_rate=1.0e+30", "train.steps=3")
    assert (folder / "checkpoints" / "step_3").is_dir()
    check_files(folder)
    return folder


@pytest.mark.parametrize("options", [(), ("--as-trained",)])
def test_eval_says_so(ruined, capsys, options, tmp_path):
    words = [
        "eval",
        str(ruined / "config.yaml"),
        "--set",
        "checkpoint.resume=auto",
        "--output",
        str(tmp_path),
        *options,
    ]
    for _ in range(2):  # the second time from the records of the first
        assert main(words) == 1
        shown = capsys.readouterr()
        assert re.search(r"all +perplexity +diverged +- ", shown.out) and "Traceback" not in shown.err
        assert len([line for line in shown.err.splitlines() if "error" in line]) == 1
        assert (
            "step_3 is of a run that diverged: validation gave no finite number; try an earlier checkpoint" in shown.err
        )
    check_files(tmp_path)
    assert main([*words, "--json"]) == 1
    assert strict(capsys.readouterr().out)["results"]["validation"]["all"]["perplexity"]["value"] is None


@pytest.mark.parametrize("options", [(), ("--temperature", "0.8"), ("--json",)])
def test_generate_says_so_in_one_line(ruined, capsys, options):
    assert main(["generate", str(ruined / "config.yaml"), "--prompt", "abcd", "--domain", "one", *options]) == 2
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if line.startswith("pangu-sigma:")]
    assert (
        "scores for the next token are not finite numbers, as those of a run that diverged" in line
        and "Traceback" not in shown.err
    )
