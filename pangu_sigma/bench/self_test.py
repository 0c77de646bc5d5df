"""`pangu-sigma doctor --self-test`: what must work before training is tried, tried on the devices and links themselves,
in about a minute; alone, or as every rank of a job.
"""

import os
import sys
import time
from dataclasses import replace
from typing import List, Optional, Sequence

import numpy as np

from locmoe_ops.errors import InputError
from pangu_sigma.bench.device import check_device
from pangu_sigma.bench.links import check_groups, check_links
from pangu_sigma.config.check_compile import NONE
from pangu_sigma.config.chips import CHIPS
from pangu_sigma.config.schema import Config
from pangu_sigma.doctor.findings import FAILURE, Finding, failure, lines_of, ok, summary_of
from pangu_sigma.planner.hardware import Hardware, load_hardware
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.runtime.messages import log
from pangu_sigma.runtime.runtime import Runtime, start_runtime
from pangu_sigma.runtime.strict_json import dumps

CPU = "cpu"  # its hardware file


def self_test(config: Config, as_json: bool) -> int:
    """Prints a line a check on the first rank, on others the failures; returns 1 if something failed on any rank, else
    0. Every rank of a job runs it.

    Args:
        config: of the job, whose degrees make its groups.
        as_json: print the findings as one JSON object.

    Raises:
        InputError: the ranks do not fit the configuration. CollectiveError: a rank was lost.
    """
    started = time.perf_counter()
    compiling = replace(config, runtime=replace(config.runtime, compile_cache=NONE))  # that is tried, too
    with start_runtime(compiling) as runtime:
        findings = [_place(runtime), *check_device(runtime.chip)]
        groups = check_groups(runtime.collectives, runtime.chip)
        findings.append(groups)
        if groups.level == FAILURE:  # neither rates nor sums mean anything
            return _show(runtime, findings, as_json)
        findings += check_links(runtime.collectives, runtime.chip, hardware_of(runtime.chip))
        findings.append(ok("time", f"{time.perf_counter() - started:.0f} s, compiling included"))
        return _show(runtime, of_all_ranks(findings, _failures(runtime, findings), runtime.world_size), as_json)


def hardware_of(chip: Optional[str]) -> Optional[Hardware]:
    """The shipped file of a device of that `chip` (None: of a CPU); None: there is none."""
    name = CPU if chip is None else CHIPS[chip].hardware.value
    try:
        return None if name is None else load_hardware(name)
    except InputError:
        return None


def of_all_ranks(findings: Sequence[Finding], failed: Sequence[int], ranks: int) -> List[Finding]:
    """This rank's `findings`, with what only others found: `failed` ranks of all `ranks`, by finding."""
    merged = []
    for finding, count in zip(findings, failed):
        if count and finding.level != FAILURE:
            finding = failure(finding.subject, f"{count} of {ranks} ranks failed", "their logs tell what they found")
        merged.append(finding)
    return merged


def _place(runtime: Runtime) -> Finding:
    where = "CPU, or a chip that is not in the table" if runtime.chip is None else f"Ascend {runtime.chip}"
    topology = runtime.topology
    return ok(
        "job",
        f"{topology.world_size} ranks on {topology.nodes} nodes, {where}; expert parallel {topology.expert}, tensor "
        f"parallel {topology.tensor}",
    )


def _failures(runtime: Runtime, findings: Sequence[Finding]) -> List[int]:
    """Of each finding, the ranks on which it is a failure."""
    own = np.array([float(finding.level == FAILURE) for finding in findings])
    return [round(count) for count in HostSum(runtime.collectives, "self-test/failures").values(own).tolist()]


def _show(runtime: Runtime, findings: Sequence[Finding], as_json: bool) -> int:
    if not runtime.is_first:
        for finding in findings:
            if finding.level == FAILURE:
                log.warning("%s: %s", finding.subject, finding.found)
    elif as_json:
        print(dumps({"time": time.time(), "findings": [finding.to_dict() for finding in findings]}), flush=True)
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        text = [line for finding in findings for line in lines_of(finding, colour)]
        print("\n".join([*text, "", summary_of(findings)]), flush=True)
    return 1 if any(finding.level == FAILURE for finding in findings) else 0
