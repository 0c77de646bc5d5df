#!/usr/bin/env python3
"""Runs what a page of the docs says, as a reader would: files from its YAML blocks, commands from its bash blocks, in
order.

usage: python scripts/check_docs.py PAGE [PAGE ...] [--from WORDS] [--limit SECONDS]

Run it where the commands are to be run: a fresh clone, with the project installed. A YAML block is a file if its first
    line is a
comment that names one. Not run, but listed: lines with words that stand for something (RUN, FILE, ...), and what needs
several machines, Ascend, or an answer. Commands read no terminal; those that follow a run end with it. --from: begin at
the first command with WORDS in it. Prints a Markdown table; exit status 1 if a command failed, or took more than
SECONDS (default 3600).
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
HOLDER = r"(?<![\w/.$])[A-Z]{4,}\b(?![=.])"  # a word that stands for something
ELSEWHERE = re.compile(
    rf"{HOLDER}|hosts\.txt|--ssh\b|hccn_tool|npu-smi|rank_table|git clone|pip install|<.*>|\.\.\.|sh .*configs/ascend"
)


def steps(text: str) -> Iterator[tuple[str, str]]:
    """("file", its content) or ("run", a command), in the page's order."""
    variables = ""
    for language, block in BLOCK.findall(text):
        if language == "yaml" and re.match(r"# \S+\.yaml\n", block):
            yield "file", block
        elif language == "bash":
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                if re.fullmatch(r'\w+="[^"]*"', line):
                    variables += f"{line}; "
                elif line.strip() and not line.lstrip().startswith("#"):
                    yield "run", variables + line if "$" in line else line


def write(block: str) -> None:
    path = Path(block.split()[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block, encoding="utf-8")
    print(f"| wrote `{path}` | | |", flush=True)


def run(command: str, limit: float) -> bool:
    """Runs it and prints a row of what came of it; whether it went well."""
    started = time.monotonic()
    log = Path(os.environ.get("TMPDIR", "/tmp")) / f"check_docs_{os.getpid()}.log"
    with open(log, "wb") as output:
        try:
            status = subprocess.run(
                ["bash", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=limit,
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
    print(f"| `{command.split('    #')[0].strip()}` | {status} | {time.monotonic() - started:.0f} s |", flush=True)
    if status:
        print("\n".join(log.read_text(errors="replace").splitlines()[-20:]), file=sys.stderr, flush=True)
    log.unlink()
    return status == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    parser.add_argument("--from", dest="first", default="", metavar="WORDS")
    parser.add_argument("--limit", type=float, default=3600.0, metavar="SECONDS")
    options = parser.parse_args()
    good = True
    print("| command | status | time |\n|---|---|---|")
    for page in options.pages:
        begun = not options.first
        for kind, what in steps(page.read_text(encoding="utf-8")):
            begun = begun or options.first in what
            if kind == "file":
                write(what)
            elif begun and ELSEWHERE.search(what.partition("    #")[0]):
                print(f"| `{what.strip()}` | not run | |", flush=True)
            elif begun:
                good &= run(what, options.limit)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
