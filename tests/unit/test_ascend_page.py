"""Every option in the commands of docs/ascend.md is one that the command has."""

import re
from pathlib import Path

import pytest

from pangu_sigma import cli

REPOSITORY = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "docs" / "ascend.md").read_text(encoding="utf-8"), re.DOTALL)
LINES = [line.partition(" # ")[0] for block in BLOCKS for line in block.splitlines()]
SCRIPTS = [line for line in LINES if re.search(r"scripts/\w+\.(sh|py)", line)]
COMMANDS = [line for line in LINES if line.startswith("pangu-sigma ")]


def options_of(line):
    return set(re.findall(r"(?<=\s)--[a-z-]+", line))


def test_the_page_has_commands():
    assert len(SCRIPTS) >= 6 and len(COMMANDS) >= 4


@pytest.mark.parametrize("line", SCRIPTS)
def test_options_of_scripts(line):
    text = (REPOSITORY / re.search(r"scripts/\w+\.(sh|py)", line)[0]).read_text(encoding="utf-8")
    missing = {option for option in options_of(line) if f"{option} " not in text and f'"{option}"' not in text}
    assert not missing


@pytest.mark.parametrize("line", COMMANDS)
def test_options_of_commands(line):
    words = [word for word in line.split() if word.startswith("--") or not word.startswith("-")]
    cli._parser().parse_args([word.replace("$CONFIG", "config.yaml") for word in words[1:]])
