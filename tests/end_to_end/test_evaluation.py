"""`pangu-sigma eval` on a trained model: the page's example, resuming after a cut-off, and what training itself
measured.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

from helpers.traces import made_up_trace
from locmoe_ops.routing_trace import to_bytes
from pangu_sigma.cli.main import _parser, main
from pangu_sigma.config.load import to_dict
from pangu_sigma.evaluation.tasks import TaskConfig

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
FILES = {name: text for name, text in re.findall(r"```\w+ (\S+)\n(.*?)```", PAGE, re.DOTALL)}
COMMANDS = [line.partition("  #")[0] for line in PAGE.splitlines() if line.startswith("pangu-sigma eval ")]


@pytest.fixture(scope="module")
def run(train):
    return train("run", "train.steps=2", "train.eval_rows=12")


@pytest.fixture
def evaluate(run, tmp_path, capsys):
    """`evaluate(...)`: what the command with these options prints; the results go to a folder of the test's own."""

    def call(*options, status=0):
        words = [
            "eval",
            str(run),
            "--output",
            str(tmp_path / "results"),
            *options,
        ]
        assert main(words) == status
        shown = capsys.readouterr()
        return shown.out if status == 0 else shown.err

    return call


def test_every_command_of_the_page_is_one():
    for line in COMMANDS:
        _parser().parse_args(shlex.split(line)[1:])
    assert len(COMMANDS) == 4


def test_the_page_names_every_key_with_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE, re.MULTILINE))
    expected = {name: json.dumps(value, ensure_ascii=False) for name, value in to_dict(TaskConfig()).items()}
    assert {name: text.strip("`") for name, text in rows.items() if name in expected} == expected


def test_the_pages_example_works_as_written_and_goes_on_where_it_was_cut_off(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text, encoding="utf-8")
    line = next(line for line in COMMANDS if "capitals.yaml" in line)
    words = shlex.split(line.replace("runs/quickstart/locmoe", str(run)).replace("--domain en", "--domain one"))
    assert main(words[1:]) == 0
    shown = capsys.readouterr().out
    assert all(len(row) <= 80 for row in shown.splitlines() if row.startswith("task-"))
    rows = {row.split()[-6]: row.split() for row in shown.splitlines() if "accuracy" in row}
    assert set(rows) == {"accuracy", "accuracy_per_byte", "accuracy_per_token"} and all(
        row[-1] == "4" for row in rows.values()
    )
    path = Path("results/task-capitals.jsonl")
    whole, results = path.read_text(), Path("results/results.json").read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:3])[:-9])  # one example whole, the second cut off
    assert main(words[1:]) == 0
    capsys.readouterr()
    resumed = [json.loads(text) for text in path.read_text().splitlines()]
    for now, before in zip(resumed[1:], [json.loads(text) for text in whole.splitlines()][1:]):
        assert now["record"].pop("nats") == pytest.approx(
            before["record"].pop("nats"), rel=1e-5
        )  # rows shared with others: rounding
        assert now == before
    found, before = json.loads(Path("results/results.json").read_text()), json.loads(results)
    assert (
        found == before and found["step"] == 2 and found["results"]["task-capitals"]["one"]["accuracy"]["examples"] == 4
    )


def test_as_trained_finds_what_training_found(run, evaluate):
    """With slots that make it drop tokens, and the rows in batches as they were."""
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    found = json.loads(evaluate("--as-trained", "--json"))["results"]
    assert set(found) == {"validation"}  # no local term, nothing else to see
    assert found["validation"]["all"]["perplexity"]["value"] == pytest.approx(last["valid/perplexity"], rel=1e-5)


def test_a_c2r_run_is_evaluated_and_resumed_without_its_table(train, tmp_path, capsys):
    """Its checkpoint has which experts go together; the trace that they were counted in is gone."""
    table = tmp_path / "trace.safetensors"
    table.write_bytes(to_bytes(made_up_trace(groups=2)))
    router = ("moe.router.type=c2r", "moe.router.top_k=2", f"moe.router.c2r={{partners: 1, table: {table}}}")
    run = train("c2r", "train.steps=2", "train.eval_rows=12", "moe.num_experts=8", *router)
    table.unlink()
    capsys.readouterr()
    assert main(["eval", str(run), "--as-trained", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]["validation"]["all"]["perplexity"]["value"]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found == pytest.approx(last["valid/perplexity"], rel=1e-5)
    train("c2r", "train.steps=3", "train.eval_rows=12", "moe.num_experts=8", "checkpoint.resume=auto", *router)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


def test_texts_and_validation_in_one_call(evaluate, tmp_path):
    (tmp_path / "text.txt").write_text("abcd efgh\n" * 30)
    shown = evaluate("--validation", "--text", f"two={tmp_path / 'text.txt'}")
    rows = [row.split() for row in shown.splitlines() if "perplexity" in row or "bits_per_byte" in row]
    assert sum("perplexity" in row for row in rows) == 4 and len(rows) == 8  # one, two, all; and the text
    assert "no token dropped" in shown and all(len(row) <= 80 for row in shown.splitlines() if "perplexity" in row)


BAD = [
    (("--text", "en"), "argument --text: invalid DOMAIN=PATH value: 'en'"),
    (("--text", "three=x"), "--text three=x: found three, expected one of the model's domains: one, two"),
    (("--task", "no.yaml"), "no.yaml: cannot be read"),
    (("--task", "TASK"), "capitals.yaml: names no domain; expected --domain"),
    (("--task", "TASK", "--task", "TASK"), "another task file has the name capitals too"),
    (("--task", "TASK", "--as-trained"), "with --as-trained, under which texts that share a batch"),
    (("--task", "TASK", "--task-data", "nowhere"), "nowhere/capitals.jsonl: cannot be read"),
    (("--task", "CODE"), "code.yaml: the metric passes runs programs that the model writes"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options_end_with_one_line(evaluate, tmp_path, options, message):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "code.yaml").write_text(
        "{kind: generate, data: capitals.jsonl, prompt: '{country}', answer: capital, program: 'pass'}"
    )
    names = {"TASK": str(tmp_path / "capitals.yaml"), "CODE": str(tmp_path / "code.yaml")}
    shown = evaluate(*(names.get(word, word) for word in options), status=2)
    lines = [line for line in shown.splitlines() if line]
    assert len(lines) == 1 and message in lines[0]
