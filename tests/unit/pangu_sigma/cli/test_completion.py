"""Completion of the command line: what bash offers, asked as bash itself asks; what it needs is looked for."""

import re
import subprocess
import sys

import pytest

from pangu_sigma.cli.main import ADD_COMMANDS, main

pytest.importorskip("shtab", reason="needs shtab, which the completion extra brings")

ASK = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
COMP_LINE="${{COMP_WORDS[*]}}"; COMP_POINT=${{#COMP_LINE}}
_shtab_pangu_sigma pangu-sigma "${{COMP_WORDS[-1]}}" "${{COMP_WORDS[-2]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def printed():
    """The completion for each shell."""
    found = {}
    for shell in ("bash", "zsh"):
        done = subprocess.run(
            [sys.executable, "-m", "pangu_sigma", "--print-completion", shell], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        found[shell] = done.stdout
    return found


@pytest.fixture
def offers(printed, tmp_path):
    """`offers(words)`: what bash offers for the last of the words, in a folder with some files."""
    script = tmp_path / "completion.bash"
    script.write_text(printed["bash"])
    place = tmp_path / "here"
    for folder in ("runs/a/checkpoints", "results"):
        (place / folder).mkdir(parents=True)
    (place / "mine.yaml").touch()

    def ask(words):
        done = subprocess.run(
            ["bash", "--norc", "-c", ASK.format(script=script, words=words)], cwd=place, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return set(filter(None, done.stdout.splitlines()))

    return ask


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pangu-sigma ev", {"eval"}),
        ("pangu-sigma --print-completion ''", {"bash", "zsh"}),
        ("pangu-sigma bench dec", {"decode"}),
        ("pangu-sigma train mi", {"mine.yaml"}),
        ("pangu-sigma eval run", {"runs"}),
        ("pangu-sigma eval runs/", {"runs/a"}),
        ("pangu-sigma report runs/a run", {"runs"}),
        ("pangu-sigma ckpt inspect runs/a/", {"runs/a/checkpoints"}),
        ("pangu-sigma eval runs/a --outp", {"--output"}),
        ("pangu-sigma eval runs/a --output re", {"results"}),
        (
            "pangu-sigma export runs/a --format ''",
            {"mindir", "safetensors", "hf-pangu-alpha", "mindformers-pangu-alpha"},
        ),
    ],
)
def test_what_bash_offers(offers, words, offered):
    assert {one.rstrip("/ ") for one in offers(words)} == offered


def test_a_folder_is_not_completed_with_a_file(offers):
    assert offers("pangu-sigma config --copy mi") == set()
    assert offers("pangu-sigma config mi") == {"mine.yaml"}


def test_every_command_is_in_both(printed):
    """That of zsh is read here, and not run: it names the commands, and files for what they take."""
    names = {add.__name__.partition("_")[2] for add in ADD_COMMANDS}
    assert names <= set(re.findall(r"[\w-]+", printed["bash"])) & set(re.findall(r"(?m)^ *(\w+):", printed["zsh"]))
    assert printed["zsh"].startswith("#compdef pangu-sigma") and ":_files" in printed["zsh"]


def test_without_shtab(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert "found no package shtab; expected it installed" in capsys.readouterr().err
