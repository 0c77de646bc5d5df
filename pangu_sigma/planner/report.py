"""A plan as text of 80 columns."""

from __future__ import annotations

from textwrap import wrap
from typing import Iterator, Optional

from pangu_sigma.planner.launches import step_launches
from pangu_sigma.planner.memory import GB
from pangu_sigma.planner.parameter_traffic import parameter_traffic
from pangu_sigma.planner.plan import JobPlan
from pangu_sigma.planner.predict import rank_flops

_CAUSES = {"all_to_all": "all-to-all", "gradient": "gradients", "tensor": "tensor parallel", "other": "other"}
WIDTH = 80


def report(plan: JobPlan, tokens: int, advice: Optional[str]) -> str:
    """The whole text.

    Args:
        plan: what it is about.
        tokens: to say how many days they take.
        advice: what would make it fit, if it does not.
    """
    parts = _job(plan), _memory(plan, advice), _traffic(plan), _time(plan, tokens), _assumptions(plan)
    return "\n\n".join("\n".join(lines) for lines in parts)


def _job(plan: JobPlan) -> Iterator[str]:
    job, topology, counts = plan.job, plan.job.topology, plan.counts
    nodes = f"{_counted(topology.nodes, 'node')} of {topology.ranks_per_node}"
    yield f"{plan.hardware.name}: {topology.world_size} ranks on {nodes}"
    yield (
        f"expert parallel {topology.expert}, tensor parallel {topology.tensor}, data parallel {topology.data}; "
        f"{job.config.runtime.precision}"
    )
    yield (
        f"a step: {job.global_tokens:,} tokens; on each rank {_counted(job.micro_batches, 'micro-batch', 'es')} of "
        f"{_counted(job.rows, 'row')} of {job.config.model.sequence_length:,}"
    )
    yield ""
    on_rank = f"on a rank {_large(counts.rank)}"
    yield f"parameters   total {_large(counts.total)}   active {_large(counts.active)}   {on_rank}"
    yield f"  {job.words:,} words" + (f" in each of {job.word_slots} tables" if job.word_slots > 1 else "")
    if counts.experts:
        yield f"  in experts {_large(counts.experts)} of the total, {_large(counts.rank_experts)} of a rank's"


def _memory(plan: JobPlan, advice: Optional[str]) -> Iterator[str]:
    memory = plan.memory
    yield f"{'memory of a rank (GB)':<40}{'':>14}{'train.recompute: all':>26}"
    for name, value in (
        ("parameters", memory.parameters),
        ("their copies for matmuls", memory.half_copies),
        ("gradients", memory.gradients),
        ("optimizer state", memory.optimizer),
    ):
        yield _row(name, value, value)
    yield _row("activations", memory.activations, memory.recomputed)
    for name, value in (("dispatch buffers", memory.dispatch), ("logits, or gradients under way", memory.working)):
        yield _row(name, value, value)
    recomputed_tensors = memory.total_recomputed - memory.reserved
    recomputed_margin = recomputed_tensors * memory.fragmentation / (1.0 + memory.fragmentation)
    yield _row(f"fragmentation margin, {memory.fragmentation:.0%}", memory.margin, recomputed_margin)
    yield _row("runtime and process groups", memory.reserved, memory.reserved)
    yield _row(f"total, of {plan.capacity / GB:.1f}", memory.total, memory.total_recomputed)
    if memory.host:
        yield _row("in host memory, of experts", memory.host, memory.host)
    yield from _verdict(plan, advice)


def _verdict(plan: JobPlan, advice: Optional[str]) -> Iterator[str]:
    if plan.fits:
        yield f"fits; {(plan.capacity - plan.memory.total) / GB:.1f} GB are left"
        return
    yield f"DOES NOT FIT: {(plan.memory.total - plan.capacity) / GB:.1f} GB are missing" + (
        " (none with train.recompute: all)" if plan.fits_recomputed else ""
    )
    if advice:
        yield "the nearest change that fits:"
        whole = advice.replace("--set ", "--set\u00a0")  # a setting stays on one line
        yield from (f"  {line}".replace("\u00a0", " ") for line in wrap(whole, WIDTH - 2, break_on_hyphens=False))


def _row(name: str, value: float, recomputed: float) -> str:
    return f"  {name:<38}{value / GB:>14.2f}{recomputed / GB:>26.2f}"


def _traffic(plan: JobPlan) -> Iterator[str]:
    yield f"{'bytes a step, all ranks':<44}{'inside nodes':>18}{'between nodes':>18}"
    if not plan.exact_bytes:
        yield "  (as far as known before training)"
    for cause, name in _CAUSES.items():
        total = plan.traffic[cause]
        yield f"  {name:<42}{total.intra_node:>18,}{total.inter_node:>18,}"


def _time(plan: JobPlan, tokens: int) -> Iterator[str]:
    time = plan.time
    yield f"{'predicted step':<44}{'seconds':>18}{'share':>18}"
    rows = [("computation", time.compute), ("parameters, read and written", time.parameters)]
    rows += [*((name, time.causes[cause]) for cause, name in _CAUSES.items())]
    rows += [(f"{_CAUSES[cause]} behind computation", -seconds) for cause, seconds in time.hidden.items() if seconds]
    if time.launch:
        rows.append(("waiting for launches", time.total - time.device))
    for name, seconds in [*rows, ("step", time.total)]:
        yield f"  {name:<42}{seconds:>18.4f}{seconds / time.total:>18.1%}"
    moved = parameter_traffic(plan.job)
    if moved.total:
        yield f"  parameters: {moved.per_number:.1f} bytes each and micro-batch, {moved.step / GB:.1f} GB once a step"
    if time.launch:
        bound = "BOUND BY THE HOST: the device waits" if time.host_bound else "beside the device's work"
        yield f"the host launches {step_launches(plan.job):,} kernels in {time.launch:.4f} s: {bound}"
    if plan.job.config.runtime.mode == "pynative":
        yield "these are times of graphs; runtime.mode pynative takes longer"
    yield ""
    share, speed = plan.time.all_to_all_share, plan.tokens_per_second
    yield f"all-to-all share {share:.1%}   MFU {plan.mfu:.1%}   {speed:,.0f} tokens/s"
    parts = rank_flops(plan.job)
    anew = f"; {parts['recomputed']:.3e} of them again" if parts["recomputed"] else ""
    rank = f"a rank carries out {sum(parts.values()):.3e}, empty slots included"
    yield from wrap(f"{plan.flops:.3e} model FLOPs a step; {rank}{anew}", WIDTH)
    yield f"{_large(tokens)} tokens take {plan.days(tokens):,.2f} days"


def _assumptions(plan: JobPlan) -> Iterator[str]:
    found = plan.hardware.assumptions()
    yield "assumptions of the hardware file (no source):" if found else "all figures of the hardware file have sources"
    line = " "
    for path, value in found:
        word = f" {path} {value:g},"
        if len(line) + len(word) > WIDTH:
            yield line
            line = " "
        line += word
    yield line.rstrip(",")


def _counted(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def _large(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3f} {unit}"
    return f"{number:,.0f}"
