"""A plan as text of at most 79 columns."""

from __future__ import annotations

from typing import Iterator, List, Optional, Tuple

from pangu_sigma.planner.launches import step_launches
from pangu_sigma.planner.memory import GB
from pangu_sigma.planner.parameter_traffic import parameter_traffic
from pangu_sigma.planner.plan import JobPlan
from pangu_sigma.planner.predict import rank_flops
from pangu_sigma.runtime.text_table import WIDTH, TableColumn, display_width, text_table, wrapped

_CAUSES = {"all_to_all": "all-to-all", "gradient": "gradients", "tensor": "tensor parallel", "other": "other"}
_LABELS, _NUMBERS = 41, 17  # widths that the three tables have in common, so that they stand below each other


def report(plan: JobPlan, tokens: int, advice: Optional[str]) -> str:
    """The whole text.

    Args:
        plan: what it is about.
        tokens: to say how many days they take.
        advice: what would make it fit, if it does not.
    """
    parts = _job(plan), _memory(plan, advice), _traffic(plan), _time(plan, tokens), _assumptions(plan)
    return "\n\n".join("\n".join(short for line in lines for short in _wrapped(line)) for lines in parts)


def _wrapped(line: str) -> List[str]:
    """A line of words that is too long continues at the same depth; the tables fit by themselves."""
    depth = line[: len(line) - len(line.lstrip())]
    if display_width(line) <= WIDTH:
        return [line]
    return wrapped(line, subsequent_indent=depth, break_on_hyphens=False)


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
    recomputed_tensors = memory.total_recomputed - memory.reserved
    recomputed_margin = recomputed_tensors * memory.fragmentation / (1.0 + memory.fragmentation)
    rows = [
        ("parameters", memory.parameters, memory.parameters),
        ("their copies for matmuls", memory.half_copies, memory.half_copies),
        ("gradients", memory.gradients, memory.gradients),
        ("optimizer state", memory.optimizer, memory.optimizer),
        ("activations", memory.activations, memory.recomputed),
        ("dispatch buffers", memory.dispatch, memory.dispatch),
        ("logits, or gradients under way", memory.working, memory.working),
        (f"fragmentation margin, {memory.fragmentation:.0%}", memory.margin, recomputed_margin),
        ("runtime and process groups", memory.reserved, memory.reserved),
        (f"total, of {plan.capacity / GB:.1f}", memory.total, memory.total_recomputed),
    ]
    if memory.host:
        rows.append(("in host memory, of experts", memory.host, memory.host))
    shown = [(f"  {name}", f"{value / GB:.2f}", f"{recomputed / GB:.2f}") for name, value, recomputed in rows]
    yield from _table(("memory of a rank (GB)", "", "train.recompute:\nall"), shown)
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
        yield from (f"  {line}".replace("\u00a0", " ") for line in wrapped(whole, WIDTH - 2, break_on_hyphens=False))


def _table(titles: Tuple[str, str, str], rows: List[Tuple[str, str, str]]) -> List[str]:
    columns = (
        TableColumn(titles[0], "<", least=_LABELS),
        *(TableColumn(title, least=_NUMBERS) for title in titles[1:]),
    )
    return text_table(columns, rows, rule=False)


def _traffic(plan: JobPlan) -> Iterator[str]:
    rows = [
        (f"  {name}", f"{plan.traffic[cause].intra_node:,}", f"{plan.traffic[cause].inter_node:,}")
        for cause, name in _CAUSES.items()
    ]
    known = [] if plan.exact_bytes else [("  (as far as known before training)", "", "")]
    yield from _table(("bytes a step, all ranks", "inside nodes", "between nodes"), known + rows)


def _time(plan: JobPlan, tokens: int) -> Iterator[str]:
    time = plan.time
    rows = [("computation", time.compute), ("parameters, read and written", time.parameters)]
    rows += [*((name, time.causes[cause]) for cause, name in _CAUSES.items())]
    rows += [(f"{_CAUSES[cause]} behind computation", -seconds) for cause, seconds in time.hidden.items() if seconds]
    if time.launch:
        rows.append(("waiting for launches", time.total - time.device))
    rows.append(("step", time.total))
    shown = [(f"  {name}", f"{seconds:.4f}", f"{seconds / time.total:.1%}") for name, seconds in rows]
    yield from _table(("predicted step", "seconds", "share"), shown)
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
    yield f"{plan.flops:.3e} model FLOPs a step; {rank}{anew}"
    yield f"{_large(tokens)} tokens take {_span(plan.days(tokens))}"


def _span(days: float) -> str:
    """A time in the largest unit of which it has at least one."""
    for unit, length in (("days", 1.0), ("hours", 24.0), ("minutes", 24.0 * 60.0)):
        if days * length >= 1.0:
            return f"{days * length:,.2f} {unit}"
    return f"{days * 24.0 * 3600.0:,.2f} seconds"


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
