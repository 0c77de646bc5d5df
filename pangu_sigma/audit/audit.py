"""`pangu-sigma audit`: starts the ranks that compile the graphs, reads these back, checks them, and says what it
found.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Optional, Sequence

import yaml

from locmoe_ops.dispatch.registry import dispatcher_spec
from locmoe_ops.errors import InputError
from pangu_sigma.audit.checks import check, recompute_faults
from pangu_sigma.audit.graph import RankGraphs, read_rank
from pangu_sigma.audit.report import as_json, report
from pangu_sigma.audit.wires import LIMIT, WireTypes, queued_behind_gradients, wide_wires
from pangu_sigma.config.check_chip import with_chip
from pangu_sigma.config.check_compile import NONE
from pangu_sigma.config.load import to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.errors import ToolFailed
from pangu_sigma.planner.cluster import default_hardware
from pangu_sigma.planner.exchanges import step_exchanges
from pangu_sigma.planner.hardware import load_hardware
from pangu_sigma.planner.job import PlannedJob, plan_job
from pangu_sigma.planner.predict import recomputed_flops
from pangu_sigma.runtime.processes import end_with_children, end_with_parent, usable_cpus, with_this_python
from pangu_sigma.runtime.strict_json import dumps

WORKER = Path(__file__).with_name("worker.py")
REPOSITORY = WORKER.parents[2]
MOST_RANKS = 64  # each is a process of this machine, with the rank's whole part of the model


def audit(
    config: Config,
    nodes: Optional[int],
    ranks_per_node: Optional[int],
    as_object: bool,
    keep: Optional[str],
    timeout: float,
    hardware: Optional[str] = None,
    kernels: bool = False,
) -> int:
    """Prints what the graphs hold and what is wrong with them; returns 0 if nothing is, else 1.

    Args:
        config: of the job; what it says of device and backend is replaced (see `audited_job`).
        nodes, ranks_per_node: of the job; None: the fewest nodes that hold all experts; `parallel.ranks_per_node`,
            else all ranks.
        as_object: print JSON in place of text.
        keep: folder to leave the graphs in; None: they are removed.
        timeout: seconds for the ranks to compile.
        hardware: file of configs/hardware, or a path, that names the chip; None: by `runtime.chip`.
        kernels: count kernels, too.

    Raises:
        InputError: the configuration does not fit the ranks. ToolFailed: a rank failed, or `timeout` passed.
    """
    job = audited_job(config, nodes, ranks_per_node, hardware)
    with tempfile.TemporaryDirectory(prefix="pangu_sigma_audit_") as scratch:
        folder = Path(os.path.realpath(keep or scratch))
        try:
            folder.mkdir(parents=True, exist_ok=not keep)
        except OSError as error:
            expected = "expected the path of a new folder"
            raise InputError(f"--keep: cannot make {keep} ({error.strerror}); {expected}") from None
        export([(job, folder)], timeout)
        ranks = read_ranks(job, folder)
    found = job, ranks, problems_of(job, ranks), kernels
    print(dumps(as_json(*found), indent=1) if as_object else report(*found))
    return 1 if found[2] else 0


def audited_job(
    config: Config, nodes: Optional[int], ranks_per_node: Optional[int], hardware: Optional[str] = None
) -> PlannedJob:
    """The job as it is compiled for Ascend with the hccl backend, on as many ranks.

    Args:
        config: of the job.
        nodes, ranks_per_node, hardware: as in `audit`.

    Raises:
        InputError: the configuration does not fit the ranks, or these are more than `MOST_RANKS`, or only one; or the
            job compiles nothing.
    """
    if config.runtime.mode == "pynative":
        raise InputError(
            "audit: runtime.mode is pynative, which has no graphs to read; expected graph, which exchanges the same "
            "(--set runtime.mode=graph)"
        )
    model_ranks = config.parallel.expert * config.parallel.tensor
    devices = ranks_per_node or config.parallel.ranks_per_node or model_ranks
    wanted = nodes or -(-model_ranks // devices)
    if wanted * devices > MOST_RANKS:
        raise InputError(
            f"audit: {wanted} nodes of {devices} ranks are {wanted * devices} processes on this machine, expected at "
            f"most {MOST_RANKS}: scale the configuration with --set, or give --nodes and --ranks-per-node"
        )
    if wanted * devices < 2:
        raise InputError(
            "audit: one rank exchanges nothing; expected parallel.expert or parallel.tensor above 1, or --nodes, or "
            "--ranks-per-node"
        )
    # Each layer's graph by itself: those that share one have the scope of the first.
    as_audited = replace(config.runtime, device="ascend", backend="hccl", lazy_inline=False, compile_cache=NONE)
    on_ascend = replace(config, runtime=as_audited)
    machine = load_hardware(hardware or default_hardware(on_ascend))
    placed = with_chip(on_ascend, machine.chip, f"hardware '{machine.name}'")
    return plan_job(placed, wanted, devices)


def problems_of(job: PlannedJob, ranks: Sequence[RankGraphs], limit: int = LIMIT) -> list[str]:
    """Everything that is wrong with the graphs of all `ranks` of `job`, a line each; `limit`: as in `wide_wires`."""
    types = WireTypes(job.compute_item, job.gradient_item)
    problems = check(ranks, step_exchanges(job), job.topology)
    problems += recompute_faults(ranks, recomputed_flops(job))
    return [*problems, *wide_wires(ranks, types, limit), *queued_behind_gradients(ranks)]


def read_ranks(job: PlannedJob, folder: Path) -> list[RankGraphs]:
    """The graphs that all ranks of `job` wrote into `folder`, in the order of ranks."""
    dynamic = not dispatcher_spec(job.config.moe.dispatch.type).has_slots
    return [read_rank(folder, rank, dynamic, job.reads_status) for rank in range(job.topology.world_size)]


def export(jobs: Sequence[tuple[PlannedJob, Path]], timeout: float, first_only: bool = False) -> None:
    """Has every rank of some jobs of equal size, or the first one alone, write its graphs, each job's into a folder of
    its own.

    Raises ToolFailed: a rank failed, or all of them took longer than `timeout` seconds.
    """
    for job, folder in jobs:
        (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(job.config), allow_unicode=True), encoding="utf-8")
        (folder / "words.json").write_text(dumps([job.words, job.domains]))
    ranks, scratch = jobs[0][0].topology.world_size, jobs[0][1]
    environment = {
        **with_this_python(),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }
    if ranks > usable_cpus():
        environment.setdefault("OMP_NUM_THREADS", "1")
    with open(scratch / "msrun.log", "wb") as log:
        process = subprocess.Popen(
            _command(ranks, scratch, [*(["--first"] if first_only else []), *(str(folder) for _, folder in jobs)]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=scratch,
            env=environment,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ToolFailed(f"audit: the {ranks} ranks had not compiled after {timeout:g} s (--timeout)") from None
        finally:
            end_with_children(process)
    # The notes count, not the exit status: MindSpore 2.10 was seen to crash on a rank while it left its cluster.
    missing = [rank for _, folder in jobs for rank in range(ranks) if not (folder / f"rank_{rank}.json").is_file()]
    if missing:
        raise ToolFailed(f"audit: rank {missing[0]} wrote no graph: {_last_error(scratch, missing[0])}")


def _command(ranks: int, scratch: Path, arguments: Sequence[str]) -> list[str]:
    msrun = shutil.which("msrun", path=with_this_python()["PATH"])
    if msrun is None:
        raise InputError("audit: found no msrun beside this Python or on PATH; expected MindSpore's")
    with socket.create_server(("127.0.0.1", 0)) as listener:  # a free port, which msrun takes next
        port: int = listener.getsockname()[1]
    return [
        msrun,
        f"--worker_num={ranks}",
        f"--local_worker_num={ranks}",
        f"--master_port={port}",
        "--join=True",
        f"--tail_worker_log={ranks}",  # nobody's: msrun, killed, would leave its `tail` processes behind
        f"--log_dir={scratch / 'log'}",
        str(WORKER),
        *arguments,
    ]


def _last_error(folder: Path, rank: int) -> str:
    logs = [folder / "log" / f"worker_{rank}.log", folder / "msrun.log"]
    lines = [line.strip() for log in logs if log.is_file() for line in log.read_text(errors="replace").splitlines()]
    errors = [line for line in lines if "Error: " in line and not line.startswith("[")]
    return errors[-1] if errors else "its log names no error"
