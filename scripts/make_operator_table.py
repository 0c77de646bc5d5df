#!/usr/bin/env python3
"""Writes docs/operators.md: every operator of exported training steps, and what the installed MindSpore has for it on
Ascend.

usage: python scripts/make_operator_table.py [--graphs FOLDER] [--check]

Exports the steps of SAMPLE, shipped configurations scaled to four ranks as scripts/check_audit.py scales them, and asks
MindSpore's own Ascend plug-ins (scripts/ascend_plugin.py), which needs a C compiler and no device. --graphs: takes the
graphs from FOLDER and the folders in it, as `pangu-sigma audit --keep` leaves them. --check: exports nothing, asks for
the operators that the page has, and compares; exit status 1 if it says something else.
"""

import argparse
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Set

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "scripts")]

from ascend_plugin import Registered, ask, deprecated  # noqa: E402 (the path comes first)
from check_audit import LIMIT, Case  # noqa: E402

from pangu_sigma.audit.audit import audited_job, export  # noqa: E402
from pangu_sigma.audit.graph import read_rank  # noqa: E402
from pangu_sigma.audit.kernels import WITHOUT_KERNEL  # noqa: E402
from pangu_sigma.config.load import config_from_dict  # noqa: E402

PAGE = REPOSITORY / "docs" / "operators.md"
COMMAND = "python scripts/make_operator_table.py"
_38B, _2_6B = "configs/ascend/pangu_sigma_38b_128.yaml", "configs/ascend/pangu_sigma_2.6b_8.yaml"
# Every router and every dispatcher once, with and without tensor parallelism, fused kernels and accumulation.
SAMPLE = (
    Case(_38B, 4, 2, "locmoe", "flat, group-wise", 2),
    Case(_38B, 4, 2, "switch", "hierarchical, group-wise", 1),
    Case(_38B, 4, 1, "gshard", "flat, chunks", 1),
    Case(_38B, 4, 1, "hash", "ragged", 1),
    Case(_2_6B, 4, 2, "locmoe", "flat", 2),
    Case(_2_6B, 4, 1, "etr", "hierarchical", 1),
    Case("configs/ascend/pangu_sigma_1085b_512.yaml", 4, 1, "faster_moe", "flat", 1),
    Case("configs/two_domains.yaml", 4, 1, "ta_moe", "flat", 1),
    Case("configs/two_domains.yaml", 4, 1, "smile", "hierarchical", 1),
    Case("configs/two_domains.yaml", 4, 1, "c2r", "flat", 1),
    Case(_38B, 4, 2, "topk, shared experts", "node_dedup", 1),
    Case("configs/two_domains.yaml", 4, 1, "topk", "flat", 1),
    Case("configs/two_domains.yaml", 4, 1, "node_limited", "node_dedup", 1),
    Case("configs/two_domains.yaml", 4, 1, "moge", "flat", 1),
    Case("configs/two_domains.yaml", 4, 1, "hash, gate", "flat", 1),
    Case("configs/two_domains.yaml", 4, 1, "replay", "flat", 1),
)
# And a small one as a configuration file without any choice has it: exact GeLU, no fused kernel, on 910A.
PLAIN = {
    "model": {"hidden_size": 16, "num_heads": 2, "dense_layers": 0, "sparse_layers": 1, "sequence_length": 16},
    "moe": {"num_experts": 8, "num_groups": 2, "router": {"type": "switch"}},
    "parallel": {"expert": 4},
    "optimizer": {"warmup_steps": 1},
    "train": {"steps": 2, "global_batch_size": 8},
    "runtime": {"device": "ascend", "precision": "fp16", "chip": "910a"},
}
_HEAD = """# Operators on Ascend

<!-- Made by `{command}` from exported graphs and the installed MindSpore; changes here are overwritten. -->

Every operator of exported training steps, and what the Ascend plug-ins of **MindSpore {version}** register for it. The
plug-ins are those of the installed wheel, asked on a machine without a device (`scripts/ascend_plugin.py`): what they
say is read, none of it was run. `{command} --check` compares the page with the wheel that is installed.

- **kernel by kernel** (`runtime.jit_level` O0 and O1): `aclnn`, an operator of CANN's library, called directly;
  `aclop`, an operator that CANN compiles at its first use and the host launches more slowly; `hccl`, a collective;
  `view`, other strides for the same memory; `rewritten`, by MindSpore's backend as another operator (AdamWeightDecay
  as AdamApplyOneWithDecayAssign); `-`, no kernel, for the reason given.
- **GE** (O2): whether the graph engine has an operator for it. Where it has none, a step with this operator does not
  compile at O2, unless MindSpore rewrites it before; this was not tried.
- **deprecated**: since which version MindSpore's sources call the operator, or the function of its name, deprecated.

What it does not say: data types and shapes that a kernel takes, whether the installed CANN has the operator on the chip
at hand, and what the backend inserts or merges.

Exported were:

{sample}

{verdict}

| operator | kernel by kernel | GE | deprecated |
|---|---|---|---|
"""


def exported(folder: Path) -> Set[str]:
    """Names of the operators of all graphs in `folder`, and in folders of it, of the first rank."""
    notes = sorted(folder.rglob("rank_0.json"))
    graphs = [graph for note in notes for graph in read_rank(note.parent, 0, dynamic=True).graphs]
    return {one.name for graph in graphs for one in graph.operators}


def export_sample(folder: Path) -> None:
    """Compiles SAMPLE and PLAIN, each job into a folder of its own in `folder`."""
    jobs = []
    plain = audited_job(config_from_dict(PLAIN), 1, 4)
    for number, job in enumerate([*(case.job() for case in SAMPLE), plain]):
        (folder / str(number)).mkdir()
        jobs.append((job, folder / str(number)))
    export(jobs, LIMIT, first_only=True)


def page(found: Mapping[str, Registered], old: Mapping[str, str], sample: str) -> str:
    """The text of the page.

    Args:
        found: of each operator. old: since when operators are deprecated. sample: what was exported, as a list.
    """
    head = _HEAD.format(command=COMMAND, version=version("mindspore"), sample=sample, verdict=_verdict(found, old))
    return head + "\n".join(_rows(found, old)) + "\n"


def sample_of_page() -> str:
    """What the page says was exported."""
    after = PAGE.read_text(encoding="utf-8").partition("\nExported were:\n\n")[2]
    return after.partition("\n\n")[0]


def _verdict(found: Mapping[str, Registered], old: Mapping[str, str]) -> str:
    kernels = {name: one for name, one in found.items() if name not in WITHOUT_KERNEL}
    lists = {
        "Without a kernel": [name for name, one in kernels.items() if not one.kernel],
        "Without an operator of GE": [name for name, one in kernels.items() if not one.graph],
        "Deprecated": [name for name in found if name in old],
    }
    counts = ", ".join(
        f"{sum(one.kernel == kind for one in kernels.values())} {kind}"
        for kind in ("aclnn", "aclop", "hccl", "view", "rewritten")
    )
    lines = [f"{len(found)} operators, {len(kernels)} of them kernels: {counts}."]
    lines += [f"{what}: {', '.join(names) or 'none'}." for what, names in lists.items()]
    return "\n".join(f"- {line}" for line in lines)


def _rows(found: Mapping[str, Registered], old: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(found, key=str.lower):
        one = found[name]
        kernel = f"- ({WITHOUT_KERNEL[name]})" if name in WITHOUT_KERNEL else one.kernel or "**none**"
        graph = "yes" if one.graph or name in WITHOUT_KERNEL else "no"
        yield f"| `{name}` | {kernel} | {graph} | {old.get(name, '')} |"


def operators_of_page() -> Dict[str, List[str]]:
    """Operator -> the other columns, as the page has them."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name.strip("`"): rest for name, *rest in cells}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=Path, metavar="FOLDER")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    spec = find_spec("mindspore")
    if spec is None or spec.origin is None:
        parser.error("found no MindSpore; expected it in the environment of this Python")
    package = Path(spec.origin).parent
    sample = "\n".join(
        f"- `{case.config}`: router {case.router}, dispatcher {case.dispatcher}, tensor parallel {case.tensor}, "
        f"micro-batches {case.micro_batches}, scaled to {case.ranks} ranks by `scripts/check_audit.py`"
        for case in SAMPLE
    )
    sample += "\n- a small job with router switch, without any choice of its own: exact GeLU, no fused kernels, 910A"
    if options.check:
        names, sample = set(operators_of_page()), sample_of_page()
    elif options.graphs:
        names, sample = exported(options.graphs), "- the steps of other jobs than the script's own (`--graphs`)"
    else:
        with tempfile.TemporaryDirectory(prefix="operators_") as folder:
            export_sample(Path(folder))
            names = exported(Path(folder))
    text = page(ask(package, sorted(names)), deprecated(package), sample)
    if options.check:
        same = text == PAGE.read_text(encoding="utf-8")
        print(f"{PAGE.name}: {'up to date' if same else f'says something else: run `{COMMAND}`'}")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
