"""`eval --trace`: which experts the tokens of prepared rows go to, as a routing trace (`locmoe_ops.routing_trace`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.routing_trace import MARKER, RoutingTrace, bytes_a_token, size_text, to_bytes
from pangu_sigma.config.derived import has_experts, num_sparse_layers, router_names
from pangu_sigma.config.schema import Config
from pangu_sigma.data.batch import Batch
from pangu_sigma.evaluation.model import EvaluatedModel
from pangu_sigma.evaluation.ranks import RankBatch, training_batches, validation_batches
from pangu_sigma.model.capacity_rules import resolve_layout
from pangu_sigma.runtime.files import check_output, write_output
from pangu_sigma.runtime.progress import progress_bar

MOST_BYTES = 2**32  # of a trace, all of which is in memory while it is written


@dataclass(frozen=True)
class TraceRequest:
    """What to trace.

    Attributes:
        path: of the file. rows: one of `routing_trace.ROWS`. tokens: at most, in whole rows.
    """

    path: str
    rows: str
    tokens: int


class _Place(NamedTuple):
    """A row of a batch, by the numbers of both."""

    batch: int
    row: int


def check_trace_request(config: Config, request: TraceRequest) -> None:
    """Raises InputError where a model of `config` cannot give what `request` asks for, or the file is not ours."""
    check_output("--trace", Path(request.path), (MARKER,))
    if not has_experts(config):
        raise InputError(f"--trace {request.path}: the model has no experts; expected a model with sparse layers")
    length = config.model.sequence_length
    if request.tokens < length:
        raise InputError(f"--trace-tokens {request.tokens}: a row has {length} tokens; expected at least one row")
    size = request.tokens * bytes_a_token(num_sparse_layers(config), config.moe.router.top_k)
    if size > MOST_BYTES:
        raise InputError(
            f"--trace-tokens {request.tokens}: the trace would take {size:,} bytes; expected at most {MOST_BYTES:,}"
        )


def write_trace(model: EvaluatedModel, request: TraceRequest) -> str:
    """Traces the rows and writes the file, whole or not at all; returns what it holds, in words.

    Args:
        model: opened with `traces`. request: what to trace.

    Raises InputError: there is no such row, or the file cannot be written.
    """
    batches = _batches(model, request)
    places = chosen_rows([batch for _, batch in batches], request.tokens // model.config.model.sequence_length)
    if not places:
        raise InputError(f"--trace {request.path}: there is no {request.rows} row to trace; expected at least one")
    trace = _trace(model, batches, places, request.rows)
    content = to_bytes(trace)
    write_output("--trace", Path(request.path), content, (MARKER,))
    return f"routing trace: {size_text(trace)}; {len(content):,} bytes written to {request.path}"


def chosen_rows(batches: List[Batch], rows: int) -> List[_Place]:
    """Rows to trace, in the order of the batches: `rows` of those that hold text, each text once; drawn at random, but
    the same for the same batches, since batches are ordered by rank and domain.

    Args:
        batches: in their order. rows: at most so many.
    """
    texts: Dict[Any, _Place] = {}
    for number, batch in enumerate(batches):
        for row in np.flatnonzero(batch.loss_mask.any(1)):
            texts.setdefault((batch.ids[row].tobytes(), int(batch.domain[row])), _Place(number, int(row)))
    found = list(texts.values())
    return [found[i] for i in sorted(np.random.default_rng(0).permutation(len(found))[:rows])]


def _batches(model: EvaluatedModel, request: TraceRequest) -> List[RankBatch]:
    config, data = model.config, model.data
    assert data is not None  # who traces asks for prepared rows
    of = (config, data, resolve_layout(config, model.runtime.topology), model.data_ranks, model.network)
    if request.rows == "validation":
        return validation_batches(*of)
    return training_batches(*of, request.tokens // config.model.sequence_length)


def _trace(model: EvaluatedModel, batches: List[RankBatch], places: List[_Place], rows: str) -> RoutingTrace:
    """Runs the batches that hold a wanted row, and keeps what the routers chose for those rows."""
    wanted: Dict[int, List[int]] = {}
    for place in places:
        wanted.setdefault(place.batch, []).append(place.row)
    parts: Dict[str, List[np.ndarray]] = {name: [] for name in ("token", "domain", "home", "expert", "weight")}
    with progress_bar(len(wanted), "trace") as bar:
        for number, own in wanted.items():
            rank, batch = batches[number]
            if model.ranks is not None:
                model.ranks.play(rank)
            routed = model.scorer.tokens(batch).routed
            assert routed is not None  # the model was opened to trace
            for name, array in (("token", batch.ids), ("domain", batch.domain), ("home", batch.home)):
                parts[name].append(array[own])
            parts["expert"].append(routed.expert[:, own])
            parts["weight"].append(routed.weight[:, own])
            bar.update(1)
    return RoutingTrace(
        **{name: np.concatenate(found, 1 if name in ("expert", "weight") else 0) for name, found in parts.items()},
        node=np.array(model.expert_nodes, np.int32),
        num_groups=model.config.moe.num_groups,
        domains=model.domains,
        source={
            "checkpoint": str(model.checkpoint),
            "sha256": model.identity,
            "step": str(model.step),
            "router": router_names(model.config),
            "rows": rows,
        },
    )
