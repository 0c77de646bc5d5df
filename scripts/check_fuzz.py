#!/usr/bin/env python3
"""Property tests of what reads files and connections of others, with many more inputs than the test suite takes.

usage: python scripts/check_fuzz.py [--examples N] [--seed S] [--only PART ...] [--output FILE] [--report]

Runs tests/**/test_fuzz_*.py, each test on N inputs (default 20000; a tenth for those that make a mesh, or run a
sequence of commands, for each input; a two-hundredth for the one that runs several jobs). Results go to FILE (default
runs/faults/fuzz.jsonl), a line a test; tests that it holds for this N and S are not run again. --only: tests whose name
contains PART. Writes the table of docs/reliability.md; --report does that alone. Exit status 1 if a test failed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from faults.page import read_rows, write_table

ROOT = Path(__file__).resolve().parents[1]
WHAT = {
    "test_fuzz_load": "configuration",
    "test_fuzz_manifest": "checkpoint manifest",
    "test_fuzz_rank_table": "rank table",
    "test_fuzz_handshake": "mesh",
    "test_fuzz_files": "commands around files of others",
    "test_fuzz_jobs": "jobs with one run folder",
}
COUNTS = re.compile(r"(\d+) passing[a-z ]*, (\d+) failing")  # as pytest shows Hypothesis's statistics


def tests() -> list[str]:
    """Ids of all property tests, as pytest takes them."""
    return [
        f"{path.relative_to(ROOT).as_posix()}::{name}"
        for path in sorted(ROOT.glob("tests/**/test_fuzz_*.py"))
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def run(test: str, examples: int, seed: int) -> dict[str, object]:
    started = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--hypothesis-profile",
            "fuzz",
            f"--hypothesis-seed={seed}",
            "--hypothesis-show-statistics",
            "-p",
            "no:cacheprovider",
            test,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "FUZZ_EXAMPLES": str(examples), "PYTHONPATH": str(ROOT)},
    )
    generated = done.stdout.partition("during generate phase")[2]
    found = COUNTS.search(generated)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-2000:], flush=True)
    if found is None and not done.returncode:
        raise SystemExit(f"{test}: Hypothesis shows no count of inputs; expected a version whose statistics have one")
    return {
        "passed": int(found[1]) if found else 0,
        "failed": max(int(found[2]) if found else 0, int(done.returncode != 0)),
        "seconds": round(time.monotonic() - started),
    }


def read(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()] if output.is_file() else []


def report(records: list[dict[str, object]]) -> int:
    """Writes and prints the table of the newest result of each test; returns the exit status. Rows of tests without one
    stay.
    """
    newest = {str(record["test"]): record for record in records}
    before = {tuple(row.split(" | ")[:2]): row for row in read_rows("fuzz")}
    rows = []
    for test in tests():
        first = (f"| {WHAT[Path(test.partition('::')[0]).stem]}", f"`{test.partition('::')[2]}`")
        if test in newest:
            found = newest[test]
            rows.append(f"{' | '.join(first)} | {found['passed']:,} | {found['failed']} | {found['seconds']:,} s |")
        elif first in before:
            rows.append(before[first])
    print(write_table("fuzz", "| reads | test | inputs | failed | time |", rows))
    return int(any(record["failed"] for record in newest.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "faults" / "fuzz.jsonl")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    key = {"examples": options.examples, "seed": options.seed}
    done = {record["test"] for record in read(options.output) if key.items() <= record.items() and not record["failed"]}
    for test in [] if options.report else tests():
        if test not in done and (not options.only or any(part in test for part in options.only)):
            record = {"test": test, **key, **run(test, options.examples, options.seed)}
            print(json.dumps(record), flush=True)
            with open(options.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    return report(read(options.output))


if __name__ == "__main__":
    sys.exit(main())
