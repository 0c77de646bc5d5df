#!/usr/bin/env python3
"""Audits the shipped configurations, scaled to a few ranks, with every router, dispatcher and tensor-parallel degree.

usage: python scripts/check_audit.py [--output FILE] [--ranks N,N] [--only PART ...] [--sample N]
                                      [--report]

A case is a configuration x ranks x tensor-parallel degree x router x dispatcher x micro-batches; sizes shrink,
everything else stays as shipped. A router's name may have more behind a comma: shared experts, another router in the
lowest sparse layer. replay takes a trace that is made up here. Configurations that gather gradients over micro-batches
do so (in two) with the router that they ship with, each dispatcher; with the others the step is one micro-batch. Cases
that differ in nothing that the compiled step depends on, as the 2.6B and the 38B ones when they are scaled, are
compiled once. Results go to FILE (default runs/audits.jsonl), a line a case; cases that it holds are not made again.
--only: configurations whose path contains PART. --sample: N of all cases, evenly spaced. --report: print the table of
what FILE holds. Exit status 1 if a case has a problem.
"""

import argparse
import atexit
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Iterator

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.routing_trace import RoutingTrace, to_bytes
from pangu_sigma.audit.audit import audited_job, export, problems_of, read_ranks
from pangu_sigma.config.load import load_config, to_dict
from pangu_sigma.errors import ToolFailed
from pangu_sigma.planner.job import PlannedJob, layer_slots

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("configs/*.yaml"), *ROOT.glob("configs/ascend/*.yaml")]
)
ROUTERS = {
    "hash": (),
    "switch": (),
    "locmoe": (),
    "faster_moe": (),
    "gshard": ("moe.router.top_k=2",),
    "ta_moe": ("moe.router.statistics=node",),
    "etr": ("moe.dispatch.drop_priority=weight", "moe.router.etr.expert_choice_start_step=1"),
    "smile": ("moe.router.smile.num_nodes=2",),
    "c2r": ("moe.router.top_k=2",),
    "topk": (
        "moe.router.top_k=2",
        "moe.router.balance.kind=quantile",
        "moe.router.topk={score_function: sqrt_softplus, normalise_weights: true, sequence_loss_weight: 0.1}",
    ),
    "topk, shared experts": ("moe.router.top_k=2", "moe.router.balance.kind=sign", "moe.shared_experts=1"),
    "node_limited": (
        "moe.router.top_k=2",
        "moe.router.balance.kind=pid",
        "moe.router.node_limited={max_nodes: 1, score_function: sigmoid, z_loss_weight: 0.1}",
    ),
    "moge": ("moe.router.top_k=2", "moe.router.moge.device_groups=2"),
    "hash, gate": ("moe.router.top_k=2", "moe.router.hash.weights=gate"),
    "switch, hash below": ("moe.routers=[{layers: [0], type: hash}]",),
    "replay": ("moe.router.top_k=2",),
}
DISPATCHERS = {
    "flat": ("moe.dispatch={type: flat}",),
    "flat, chunks": ("moe.dispatch={type: flat, chunks: 2}",),
    "hierarchical": ("moe.dispatch={type: hierarchical}",),
    "node_dedup": ("moe.dispatch={type: node_dedup}", "moe.router.top_k=2"),
    "ragged": ("moe.dispatch={type: ragged}", "moe.capacity={}"),
    "flat, group-wise": ("moe.dispatch={type: flat, group_wise: true}",),
    "hierarchical, group-wise": ("moe.dispatch={type: hierarchical, group_wise: true, chunks: 2}",),
}
NOT_IN_THE_STEP = {  # read by the host alone, or constants of which only the value enters
    "data": ("path", "prepare", "mixing", "weights"),
    "model": ("init_std",),
    "moe": ("initial_experts",),
    "optimizer": (
        "learning_rate",
        "end_learning_rate",
        "warmup_steps",
        "decay_steps",
        "beta1",
        "beta2",
        "epsilon",
        "expert_epsilon",
    ),
    "parallel": ("nodes",),
}
AT_ONCE = 8  # cases that ranks compile in one go
SMALL = 256  # bytes of a call of so small a model, above which the types on the wire are judged
LIMIT = 3600  # seconds for them
EXPERTS, LENGTH, WORDS = 8, 16, 64  # of every case


@dataclass(frozen=True)
class Case:
    config: str
    ranks: int
    tensor: int
    router: str
    dispatcher: str
    micro_batches: int

    @property
    def key(self) -> list[object]:
        return [self.config, self.ranks, self.tensor, self.router, self.dispatcher, self.micro_batches]

    def job(self) -> PlannedJob:
        """Raises InputError: the parts do not go together."""
        shipped = load_config(str(ROOT / self.config))
        groups = 2 if shipped.moe.num_groups > 1 else 1
        data = self.ranks // self.tensor
        overrides = [
            f"model.hidden_size={64 if shipped.runtime.fused.attention else 16}",  # the kernel's heads have 16 features
            "model.num_heads=4",
            "model.ffn_hidden_size=32",
            f"model.sequence_length={LENGTH}",
            f"model.vocab_size={WORDS}",
            f"model.dense_layers={min(shipped.model.dense_layers, 1)}",
            f"model.sparse_layers={min(shipped.model.sparse_layers, 1)}",
            f"moe.num_experts={EXPERTS}",
            f"moe.num_groups={groups}",
            f"moe.domain_groups={[*range(groups)]}",
            "data.path=none",
            f"parallel.expert={data}",
            f"parallel.tensor={self.tensor}",
            f"parallel.ranks_per_node={self.ranks // 2}",
            f"train.global_batch_size={data * self.micro_batches}",
            f"train.micro_batch_size={1 if self.micro_batches > 1 else 'null'}",
            f"moe.router.type={self.router.partition(',')[0]}",
            "moe.router.top_k=1",
            *DISPATCHERS[self.dispatcher],
            *ROUTERS[self.router],
        ]
        if self.router == "replay":
            layers = min(shipped.model.sparse_layers, 1) + shipped.model.sparse_query_layer
            overrides.append(f"moe.router.replay.trace={trace_file(layers, groups)}")
        return audited_job(load_config(str(ROOT / self.config), overrides), 2, self.ranks // 2)


@cache
def trace_file(layers: int, groups: int) -> Path:
    """A routing trace of four rows in two domains, two experts a token, drawn; gone when the program ends."""
    folder = Path(tempfile.mkdtemp(prefix="check_audit_trace_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng, rows, size = np.random.default_rng(0), 4, EXPERTS // groups
    domain = np.arange(rows, dtype=np.int32) % 2
    drawn = np.argsort(rng.random((layers, rows, LENGTH, size)), -1)[..., :2]
    first = domain % groups * size  # of the group of each row's domain
    trace = RoutingTrace(
        token=rng.integers(0, WORDS, (rows, LENGTH), np.int32),
        domain=domain,
        home=np.zeros(rows, np.int32),
        expert=(drawn + first[:, None, None]).astype(np.int32),
        weight=rng.random((layers, rows, LENGTH, 2), np.float32),
        node=np.zeros(EXPERTS, np.int32),
        num_groups=groups,
        domains=("first", "second"),
    )
    path = folder / "trace.safetensors"
    path.write_bytes(to_bytes(trace))
    return path


def cases(ranks: list[int], only: list[str]) -> Iterator[Case]:
    for config in CONFIGS:
        if only and not any(part in config for part in only):
            continue
        shipped = load_config(str(ROOT / config))
        for size in ranks:
            for tensor in (1, 2):
                for dispatcher in DISPATCHERS:
                    for router in ROUTERS:
                        yield Case(config, size, tensor, router, dispatcher, 1)
                    if shipped.train.micro_batch_size:
                        yield Case(config, size, tensor, shipped.moe.router.type, dispatcher, 2)


def note(output: Path, case: Case, result: str, lines: list[str]) -> None:
    with open(output, "a", encoding="utf-8") as file:
        file.write(json.dumps([case.key, result, lines]) + "\n")


def run(todo: list[Case], output: Path) -> None:
    """Audits jobs of equal size together, as many as AT_ONCE."""
    alike: dict[str, tuple[PlannedJob, list[Case]]] = {}
    for case in todo:
        try:
            job = case.job()
        except InputError as error:
            note(output, case, "refused", [str(error)])
            continue
        alike.setdefault(fingerprint(job), (job, []))[1].append(case)
    jobs = [*alike.values()]
    while jobs:
        size = jobs[0][0].topology.world_size
        batch = [entry for entry in jobs if entry[0].topology.world_size == size][:AT_ONCE]
        jobs = [entry for entry in jobs if entry not in batch]
        started = time.monotonic()
        audit(batch, output)
        print(f"{len(batch)} jobs of {size} ranks in {time.monotonic() - started:.0f} s, {len(jobs)} left", flush=True)


def fingerprint(job: PlannedJob) -> str:
    """Equal for jobs whose compiled steps are, up to the values of constants: slots stand for the capacity factor that
    asks for them.
    """
    config = to_dict(job.config)
    for section, names in NOT_IN_THE_STEP.items():
        for name in names:
            del config[section][name]
    compiled = ("global_batch_size", "micro_batch_size", "recompute", "seed")
    config["train"] = {name: config["train"][name] for name in compiled}
    config["moe"]["capacity"] = {
        **config["moe"]["capacity"],
        "factor": None,
        "evaluation_factor": None,
        "slots": asdict(layer_slots(job)),
    }
    del config["checkpoint"]
    return json.dumps(
        [job.topology.world_size, job.topology.ranks_per_node, job.words, job.domains, config], sort_keys=True
    )


def audit(batch: list[tuple[PlannedJob, list[Case]]], output: Path) -> None:
    """Compiles the jobs of a batch together; if that fails, each by itself: the failure is then a problem of its
    cases.
    """
    with tempfile.TemporaryDirectory(prefix="check_audit_") as scratch:
        folders = []
        for number in range(len(batch)):
            folders.append(Path(scratch) / str(number))
            folders[-1].mkdir()
        try:
            export([(job, folder) for (job, _), folder in zip(batch, folders)], LIMIT)
            found = [problems_of(job, read_ranks(job, folder), SMALL) for (job, _), folder in zip(batch, folders)]
        except ToolFailed as error:
            if len(batch) > 1:
                for entry in batch:
                    audit([entry], output)
                return
            found = [[str(error)]]
    for (_, cases_of_job), problems in zip(batch, found):
        for case in cases_of_job:
            note(output, case, "problems" if problems else "passed", problems)


def read(output: Path) -> dict[tuple[object, ...], tuple[str, list[str]]]:
    lines = output.read_text(encoding="utf-8").splitlines() if output.is_file() else []
    return {tuple(key): (result, found) for key, result, found in map(json.loads, lines)}


def report(results: dict[tuple[object, ...], tuple[str, list[str]]]) -> int:
    """Prints a Markdown table by configuration, ranks and degree, then problems and refusals; returns the exit
    status.
    """
    table: Counter[tuple[object, ...]] = Counter()
    for key, (result, _) in results.items():
        table[(*key[:3], result)] += 1
    print("| configuration | ranks | tensor | passed | refused | problems |\n|---|---|---|---|---|---|")
    for config, ranks, tensor in sorted({key[:3] for key in results}, key=str):
        numbers = " | ".join(str(table[config, ranks, tensor, result]) for result in ("passed", "refused", "problems"))
        print(f"| {config} | {ranks} | {tensor} | {numbers} |")
    print("\nRefused, by reason:")
    reasons = Counter(
        found[0].partition(": ")[2] or found[0] for result, found in results.values() if result == "refused"
    )
    for reason, number in reasons.most_common():
        print(f"- {number} x {reason}")
    wrong = [(key, found) for key, (result, found) in results.items() if result == "problems"]
    for key, found in wrong:
        print(f"\n{key}:", *found, sep="\n  ")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "audits.jsonl")
    parser.add_argument("--ranks", default="4,8")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--sample", type=int, metavar="N")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if not options.report:
        done = read(options.output)
        wanted = list(cases([int(size) for size in options.ranks.split(",")], options.only))
        if options.sample:
            wanted = [wanted[i * len(wanted) // options.sample] for i in range(min(options.sample, len(wanted)))]
        run([case for case in wanted if tuple(case.key) not in done], options.output)
    return report(read(options.output))


if __name__ == "__main__":
    sys.exit(main())
