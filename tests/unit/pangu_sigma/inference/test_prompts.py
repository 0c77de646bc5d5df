"""`pangu-sigma generate` around a generator that is compiled already."""

import argparse
import io
import json

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.cli.generate import add_sampling
from pangu_sigma.cli.main import main
from pangu_sigma.inference.generator import Generator, SamplingSettings
from pangu_sigma.inference.prompts import read_prompts, sampling_settings

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
    assert found == [
        {"prompt": "abcd", "domain": "two", "text": texts[0], "tokens": 5},
        {"prompt": "", "domain": "one", "text": texts[1], "tokens": 5},
    ]


def test_nothing_is_shown_while_a_graph_is_compiled(run, generator, monkeypatch, capsys):
    """The seconds are counted on a line of their own."""
    before = []

    def pieces(*_):
        before.append(capsys.readouterr().out)
        yield "efgh"
        yield "ijkl"

    monkeypatch.setattr(generator, "stream_text", pieces)
    assert run("--prompt", "abcd", "--domain", "two")[:2] == (0, "abcdefghijkl\n") and before == [""]
    monkeypatch.setattr(generator, "stream_text", lambda *_: iter(()))
    assert run("--prompt", "abcd", "--domain", "two")[:2] == (0, "abcd\n")


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ([], SamplingSettings()),
        (["--temperature", "0"], SamplingSettings(temperature=0.0)),
        (["--top-p", "1", "--top-k", "3", "--max-new-tokens", "7"], SamplingSettings(7, top_k=3, top_p=1.0)),
        (["--repetition-penalty", "1.5", "--seed", "4"], SamplingSettings(repetition_penalty=1.5, seed=4)),
        (
            ["--frequency-penalty", "0.5", "--presence-penalty", "0.25"],
            SamplingSettings(64, 0.8, 0, 0.95, 1.0, 0.5, 0.25),
        ),
    ],
)
def test_options_and_python_have_the_same_defaults(words, settings):
    parser = argparse.ArgumentParser()
    add_sampling(parser)
    assert sampling_settings(parser.parse_args(words)) == settings


def test_several_prompts_and_answers_to_questions(run, generator):
    first, second = generator.generate_text(["ab", "cd"], [0, 0], SETTINGS)
    expected = f"--- 0 (one)\nab{first}\n--- 1 (one)\ncd{second}\n"
    assert run("--prompt", "ab", "--prompt", "cd", "--domain", "0", *WORDS) == (0, expected, "")
    assert run("--interactive", "--domain", "one", *WORDS, answers="ab\ncd\n")[:2] == (0, f"ab{first}\ncd{second}\n")
    status, out, err = run("--interactive", "--domain", "one", *WORDS, answers=f"{'ab ' * 40}\nab\n\nmore\n")
    assert status == 0 and out == f"ab{first}\n" and "expected 1 to 32" in err


@pytest.mark.parametrize(
    "words, told",
    [
        ([], "found 0 of --prompt, --prompt-file and --interactive; expected one of them"),
        (["--prompt", "a", "--interactive"], "found 2 of --prompt"),
        (["--prompt", "a"], "--domain: none given; expected one of one, two"),
        (["--prompt", "a", "--domain", "three"], "domain three: expected one of one, two, or a number from 0 to 1"),
        (["--prompt", "a", "--domain", "one", "--temperature", "-1"], "temperature is -1.0; expected 0 or more"),
        (["--prompt", "a", "--domain", "one", "--max-new-tokens", "0"], "argument --max-new-tokens"),
        (["--prompt", "a " * 99, "--domain", "one"], "tokens; expected 1 to 32, the model's length"),
        (["--prompt-file", "none.txt"], "--prompt-file none.txt: cannot be read"),
        (["--prompt-file", "bad.jsonl"], "bad.jsonl:2: found a list; expected an object with `prompt`"),
        (["--prompt-file", "blank.ndjson"], "--prompt-file blank.ndjson: empty; expected a prompt each line"),
        (
            ["--prompt", "caf\udce9", "--domain", "one"],
            "--prompt holds half of a surrogate pair or bytes that are no text",
        ),
        (["--prompt", "a", "--domain", "7" * 5000], "7: expected one of one, two, or a number from 0 to 1"),
        (["--prompt", "a", "--domain", ""], "--domain: domain : expected one of one, two"),
        (["--prompt-file", "empty.txt"], "--prompt-file empty.txt: empty; expected a prompt each line"),
    ],
)
def test_bad_input(run, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n[]\n')
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.ndjson").write_text("\n  \n")
    status, out, err = run(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b", "domain": "one"}', [("a", None), ("b", "one")]),
        ("a.JSONL", '\ufeff{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n', [("a", None), ("b", None)]),
        ("a.ndjson", '\n{"prompt": "a\u2028b\u0085c"}\n\n', [("a\u2028b\u0085c", None)]),
        ("a.jsonl", '{"prompt": "a", "domain": null}\n{"prompt": "", "domain": 1}', [("a", None), ("", "1")]),
        ("a.jsonl", '{"prompt": "\\ud83d\\ude00"}', [("\U0001f600", None)]),
        ("a.txt", "\ufeffa\u2028b\u0085c\r\n\r\n  \n b \n", [("a\u2028b\u0085c", None), (" b ", None)]),
        ("a.json", '{"prompt": "a"}', [('{"prompt": "a"}', None)]),
        ("prompts", "a\x0cb\nc", [("a\x0cb", None), ("c", None)]),
    ],
)
def test_prompts_of_a_file(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content.encode())
    assert [(prompt.text, prompt.domain) for prompt in read_prompts(tmp_path / name, None)] == expected
    given = [domain or "two" for _, domain in expected]
    assert [prompt.domain for prompt in read_prompts(tmp_path / name, "two")] == given


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "\\ud83d"}', "field `prompt` holds half of a surrogate pair"),
        ('{"prompt": "a", "domain": "\\ud83d"}', "field `domain` holds half of a surrogate pair"),
        ('{"prompt": ' + "7" * 5000 + "}", "an integer of 5000 digits"),
        ('{"prompt": 7}', "field `prompt` is a number; expected a string"),
        ('{"prompt": null}', "field `prompt` is null; expected a string"),
        ('{"domain": "one"}', "field `prompt` is missing"),
        ('{"prompt": "a", "domain": true}', "field `domain` is a boolean; expected a string"),
        ('{"prompt": "a", "domain": 0.5}', "field `domain` is a number; expected a string"),
        ('{"prompt": "a", "domain": ["one"]}', "field `domain` is a list; expected a string"),
        ('{"prompt": "a", "temperature": 1}', "found the field 'temperature'; expected `prompt`, and perhaps `domain`"),
        ('{"prompt": "a", "prompt": "b"}', "'prompt' is given twice"),
        ('"a"', "found a string; expected an object with `prompt`"),
        ("[" * 50000, "nested too deeply"),
    ],
)
def test_a_wrong_line_of_a_prompt_file_is_named(tmp_path, line, told):
    (tmp_path / "x.jsonl").write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(InputError) as caught:
        list(read_prompts(tmp_path / "x.jsonl", None))
    assert str(caught.value).startswith(f"--prompt-file {tmp_path}/x.jsonl:2: ") and told in str(caught.value)


def test_a_domain_that_is_none_is_named_with_its_line(run, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "a", "domain": "three"}\n')
    status, _, err = run("--prompt-file", str(path), "--domain", "one")
    assert status == 2 and f"{path}:2: domain three: expected one of one, two" in err


def test_a_prompt_of_the_terminal_that_is_no_text_is_forgotten(run, generator):
    status, out, err = run("--interactive", "--domain", "one", *WORDS, answers="caf\udce9\nab\n")
    first = generator.generate_text(["ab"], [0], SETTINGS)[0]
    assert (status, out) == (
        0,
        f"ab{first}\n",
    ) and "the prompt holds half of a surrogate pair or bytes that are no text" in err
