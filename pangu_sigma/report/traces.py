"""`pangu-sigma trace`: what routing traces show: load, domains, nodes, and how alike two of them are."""

from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.routing_trace import RoutingTrace, file_name, matching_rows, read_trace, size_text
from pangu_sigma.metrics.agreement import agreement
from pangu_sigma.metrics.load import (
    effective_experts,
    load_entropy,
    max_violation,
    min_violation,
    nodes_touched,
    specialisation,
)
from pangu_sigma.runtime.reporting import print_json
from pangu_sigma.runtime.text_table import TableColumn, text_table

Values = Dict[str, Any]
LEAST_ROWS = 2  # one to match experts by, one to count agreement on


class NamedTrace(NamedTuple):
    """A trace and the path that it was read from."""

    path: str
    trace: RoutingTrace


def show_traces(paths: Sequence[str], as_json: bool = False) -> None:
    """Prints the measures of each trace, and the agreement of each with the first.

    Args:
        paths: of the files. as_json: print the numbers as JSON, in place of tables.

    Raises InputError: a file is no trace, or two traces have no text or no network in common.
    """
    traces = [NamedTrace(path, read_trace(path, "trace")) for path in paths]
    compared = [_compared(traces[0], other) for other in traces[1:]]
    if as_json:
        alone = {one.path: {"source": dict(one.trace.source), "layers": layer_measures(one.trace)} for one in traces}
        print_json({"traces": alone, "agreement": compared})
        return
    for one in traces:
        print(_heading(one), "", _layers(one.trace), "", _domains(one.trace), "", sep="\n")
    for other in compared:
        print(_agreement(other), "", sep="\n")


def layer_measures(trace: RoutingTrace) -> List[Values]:
    """The measures of each sparse layer, bottom up, by the names of `pangu_sigma.metrics.definitions`."""
    found = []
    for expert in trace.expert:
        by_domain = load_by_domain(trace, expert)
        load = by_domain.sum(0)
        touched = np.bincount(nodes_touched(expert, trace.node).reshape(-1))[1:]
        found.append(
            {
                "trace/max_violation": float(max_violation(load)),
                "trace/min_violation": float(min_violation(load)),
                "trace/load_entropy": float(load_entropy(load)),
                "trace/specialisation": specialisation(by_domain),
                "trace/effective_experts": dict(zip(_domain_names(trace), effective_experts(by_domain).tolist())),
                "trace/tokens_by_nodes": (touched / touched.sum()).tolist(),
            }
        )
    return found


def load_by_domain(trace: RoutingTrace, expert: np.ndarray) -> np.ndarray:
    """<int64>[D, E]: choices of each expert by tokens of each domain.

    Args:
        trace: whose rows they are. expert: <int32>[R, S, k] of a layer.
    """
    count, size = len(_domain_names(trace)), trace.num_experts + 1
    cell = trace.domain[:, None, None].astype(np.int64) * size + expert  # (R, S, k)
    return np.asarray(np.bincount(cell.reshape(-1), minlength=count * size).reshape(count, size)[:, :-1])


def trace_agreement(first: RoutingTrace, second: RoutingTrace) -> Tuple[int, List[Values]]:
    """How many rows two traces have in common, and the measures of each sparse layer, bottom up.

    Args:
        first, second: of networks of the same size.

    Raises InputError: they are not, or they have less than two rows in common.
    """
    for what in ("layers", "num_experts", "top_k"):
        of_both = (getattr(first, what), getattr(second, what))
        if of_both[0] != of_both[1]:
            raise InputError(f"the traces have {what} {of_both[0]} and {of_both[1]}; expected the same of both")
    of_first, of_second = matching_rows(first, second)
    if len(of_first) < LEAST_ROWS:
        raise InputError(
            f"the traces have {len(of_first)} rows of text in common; expected at least {LEAST_ROWS}, as of one "
            "prepared folder and the same --trace-rows and --trace-tokens"
        )
    layers = []
    for one, other in zip(first.expert, second.expert):
        found = agreement(one[of_first], other[of_second], first.num_experts)
        layers.append(
            {"trace/same_expert": found.same, "trace/matched_expert": found.matched, "trace/chance": found.chance}
        )
    return len(of_first), layers


def _compared(first: NamedTrace, second: NamedTrace) -> Values:
    try:
        rows, layers = trace_agreement(first.trace, second.trace)
    except InputError as error:
        raise InputError(f"{first.path} and {second.path}: {error}") from None
    return {"first": first.path, "second": second.path, "rows": rows, "layers": layers}


def _domain_names(trace: RoutingTrace) -> Tuple[str, ...]:
    return trace.domains or tuple(str(number) for number in range(int(trace.domain.max()) + 1))


# ---- tables


def _heading(one: NamedTrace) -> str:
    of = ", ".join(
        f"{name} {one.trace.source[name]}" for name in ("step", "router", "rows") if name in one.trace.source
    )
    return f"{file_name(one.path)}: {of}\n{size_text(one.trace)}"


def _layers(trace: RoutingTrace) -> str:
    titles = ("MaxVio", "MinVio", "entropy", "specialisation", "tokens on 1, 2, ... nodes")
    rows = []
    for number, found in enumerate(layer_measures(trace)):
        told = found["trace/specialisation"]
        rows.append(
            (
                str(number),
                f"{found['trace/max_violation']:.3f}",
                f"{found['trace/min_violation']:.3f}",
                f"{found['trace/load_entropy']:.3f}",
                "-" if told is None else f"{told:.3f}",
                " ".join(f"{share:.1%}" for share in found["trace/tokens_by_nodes"]),
            )
        )
    return "\n".join(text_table([TableColumn("layer"), *map(TableColumn, titles)], rows))


def _domains(trace: RoutingTrace) -> str:
    """A line a domain: how many experts it uses in each layer, as if it used them alike."""
    names, layers = _domain_names(trace), layer_measures(trace)
    tokens = np.bincount(trace.domain, minlength=len(names)) * trace.length
    columns = [TableColumn("domain", "<", wraps=True), TableColumn("tokens")]
    columns += [TableColumn(f"layer {number}") for number in range(min(len(layers), 6))]
    rows = [
        (name, f"{count:,}", *(f"{found['trace/effective_experts'][name]:.2f}" for found in layers[:6]))
        for name, count in zip(names, tokens)
    ]
    return "\n".join(["experts that a domain uses, of " + str(trace.num_experts), *text_table(columns, rows)])


def _agreement(found: Values) -> str:
    titles = ("same expert", "matched expert", "by chance")
    rows = [
        (str(number), *(f"{layer[name]:.1%}" for name in ("trace/same_expert", "trace/matched_expert", "trace/chance")))
        for number, layer in enumerate(found["layers"])
    ]
    head = f"{file_name(found['first'])} and {file_name(found['second'])}: {found['rows']:,} rows in common"
    return "\n".join([head, *text_table([TableColumn("layer"), *map(TableColumn, titles)], rows)])
