"""`pangu-sigma generate` around a generator that is compiled already."""

import io
import json

import pytest

from pangu_sigma.cli import main
from pangu_sigma.inference.api import Generator, SamplingSettings

SETTINGS = SamplingSettings(max_new_tokens=5, temperature=1.5, seed=3, stop_at_end=False)
WORDS = ["--max-new-tokens", "5", "--temperature", "1.5", "--seed", "3", "--ignore-end"]


@pytest.fixture
def run(run_folder, generator, monkeypatch, capsys):
    """Runs the command; returns its status and what it printed and complained."""
    monkeypatch.setattr(Generator, "load", classmethod(lambda cls, *_: generator))

    def _run(*words, answers=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(answers))
        status = main(["generate", str(run_folder / "config.yaml"), *words])
        return status, *capsys.readouterr()

    return _run


def test_one_prompt_is_streamed_behind_itself(run, generator):
    expected = generator.generate_text(["abcd"], [1], SETTINGS)[0]
    assert run("--prompt", "abcd", "--domain", "two", *WORDS) == (0, f"abcd{expected}\n", "")


def test_prompts_of_a_file_as_json(run, generator, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "abcd"}\n{"prompt": "", "domain": "one"}\n')
    status, out, _ = run("--prompt-file", str(path), "--domain", "two", "--json", *WORDS)
    found = [json.loads(line) for line in out.splitlines()]
    texts = generator.generate_text(["abcd", ""], [1, 0], SETTINGS)
    assert status == 0
    assert found == [{"prompt": "abcd", "domain": "two", "text": texts[0], "tokens": 5},
                     {"prompt": "", "domain": "one", "text": texts[1], "tokens": 5}]


def test_several_prompts_and_answers_to_questions(run, generator):
    first, second = generator.generate_text(["ab", "cd"], [0, 0], SETTINGS)
    expected = f"--- 0 (one)\nab{first}\n--- 1 (one)\ncd{second}\n"
    assert run("--prompt", "ab", "--prompt", "cd", "--domain", "0", *WORDS) == (0, expected, "")
    assert run("--interactive", "--domain", "one", *WORDS, answers="ab\ncd\n")[:2] == (0, f"ab{first}\ncd{second}\n")
    status, out, err = run("--interactive", "--domain", "one", *WORDS, answers=f"{'ab ' * 40}\nab\n\nmore\n")
    assert status == 0 and out == f"ab{first}\n" and "expected 1 to 32" in err


@pytest.mark.parametrize("words, told", [
    ([], "found 0 of --prompt, --prompt-file and --interactive; expected one of them"),
    (["--prompt", "a", "--interactive"], "found 2 of --prompt"),
    (["--prompt", "a"], "--domain: none given; expected one of one, two"),
    (["--prompt", "a", "--domain", "three"], "domain three: expected one of one, two, or a number from 0 to 1"),
    (["--prompt", "a", "--domain", "one", "--temperature", "-1"], "temperature is -1.0; expected 0 or more"),
    (["--prompt", "a", "--domain", "one", "--max-new-tokens", "0"], "argument --max-new-tokens"),
    (["--prompt", "a " * 99, "--domain", "one"], "tokens; expected 1 to 32, the model's length"),
    (["--prompt-file", "none.txt"], "--prompt-file none.txt: cannot be read"),
    (["--prompt-file", "bad.jsonl"], "bad.jsonl:2: found '[]'; expected an object with `prompt`"),
    (["--prompt-file", "empty.txt"], "--prompt-file empty.txt: empty; expected a prompt each line"),
])
def test_bad_input(run, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n[]\n')
    (tmp_path / "empty.txt").write_text("")
    status, out, err = run(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
