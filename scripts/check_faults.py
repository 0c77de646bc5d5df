#!/usr/bin/env python3
"""What comes of faults, measured: kills, corrupt checkpoints, storage that refuses, a network that is down, strangers
at the port.

usage: python scripts/check_faults.py [--only PART ...] [--count N] [--seed S] [--folder DIR] [--report]

Parts: kills (100), corruptions (200), storage, network, packets (10,000 in one job). --count: try the first N of a part
instead. Which faults these are follows from S (default 0). Results go to DIR/outcomes.jsonl (default runs/faults), a
line a fault; what it holds is not tried again. Then writes the table of docs/reliability.md (--report: that alone).
Storage and network need Linux, root and iproute2. Exit status 1 if anything was lost, did not recover, or could not be
tried.
"""

import argparse
import importlib
import sys
from pathlib import Path

from faults.clock import NotTried
from faults.ledger import Ledger, report
from faults.page import ROOT

PARTS = ["kills", "corruptions", "storage", "network", "packets"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "faults")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    folder = options.folder.absolute()
    failed = 0
    ledger = Ledger(folder / "outcomes.jsonl")
    for part in [] if options.report else options.only:
        module = importlib.import_module(f"faults.{part}")
        try:
            module.run(folder, ledger, module.COUNT if options.count is None else options.count, options.seed)
        except NotTried as problem:
            print(f"{part}: not tried: {problem}", file=sys.stderr, flush=True)
            failed = 1
    return max(failed, report(ledger.read(), PARTS))


if __name__ == "__main__":
    sys.exit(main())
