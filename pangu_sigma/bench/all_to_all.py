"""`pangu-sigma bench all-to-all`: dispatchers alone, there and back with experts that do nothing, forward and backward.

Next to each stands what the link allows: the bytes that a node sends to others, in one direction, at the link's rate;
or, where no rate is given, as many bytes in plain exchanges of the mesh, without packing, graphs and kernels, measured
in turn with it. All ranks start a launch together; times are means over ranks.

Which experts the tokens want is `pangu_sigma.bench.routing`'s. Slots are the same whatever they want: only `ragged`
sends more where more want the same expert; the others drop what finds no slot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mindspore import Tensor

from locmoe_ops.collectives.tcp.mesh import Mesh
from locmoe_ops.dispatch.registry import dispatchers
from locmoe_ops.errors import InputError
from locmoe_ops.topology import ExpertPlacement
from pangu_sigma.bench.routing import BalancedRouting, BenchRouting, TokensOfRank, busiest_over_mean
from pangu_sigma.bench.timing import (
    ROUNDS,
    WARM_UP,
    Dispatch,
    ForwardBackward,
    even_vocabulary,
    in_turn,
    random_tensor,
    seconds,
)
from pangu_sigma.config.derived import micro_batch_sequences
from pangu_sigma.config.schema import Config, DispatchConfig
from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.sparse import SparseContext, build_dispatcher
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.runtime.runtime import Runtime, start_runtime
from pangu_sigma.runtime.text_table import TableColumn, text_table

_COLUMNS = (  # of fixed widths, since rows are shown as they are measured
    TableColumn("tokens", least=6),
    TableColumn("dispatcher", "<", least=22),
    TableColumn("ms", least=7),
    TableColumn("inside (B)", least=11),
    TableColumn("between (B)", least=12),
    TableColumn("limit ms", least=8),
    TableColumn("reached", least=7),
)
SMALLEST = 64
CAUSE = "all_to_all"
EXCHANGES = 4  # of a pass at least, one after another: to the experts and back, and the same for the gradient
CHUNKS = (1, 2, 4)  # numbers of chunks that are measured, of dispatchers that take as many


class NodeBytes(NamedTuple):
    """Payload that the node which sends most sends in one pass: to its own ranks, and to other nodes."""

    inside: int
    between: int


@dataclass(frozen=True)
class ExchangeTiming:
    """A row of the table.

    Attributes:
        tokens: of each rank. name: of the dispatcher. seconds: of a pass, mean over ranks.
        sent: None where the backend cannot see its traffic. limit: seconds that the link needs; None where not known.
    """

    tokens: int
    name: str
    seconds: float
    sent: Optional[NodeBytes]
    limit: Optional[float]


def bench_all_to_all(
    config: Config,
    tokens: Sequence[int] = (),
    rate: Optional[float] = None,
    routing: BenchRouting = BalancedRouting(),  # noqa: B008 (frozen, without state)
) -> int:
    """Prints the table on rank 0; returns 0. Every rank of a job runs it.

    Args:
        config: the job's. tokens: tokens a rank; none: powers of two from SMALLEST up to the configuration's own.
        rate: bits a second of a node's link to the others, in one direction; None: see the head of this file.
        routing: which experts the tokens want.

    Raises:
        InputError: the job's expert-parallel groups have one rank, its slots are measured while it trains, `rate` is
            given and all its ranks are on one node, or `routing` is a trace of other experts.
    """
    if config.parallel.expert == 1:
        raise InputError("parallel.expert is 1, so that no token leaves its rank; bench all-to-all expects at least 2")
    if config.moe.capacity.mode != "factor":
        raise InputError(
            f"moe.capacity.mode is {config.moe.capacity.mode}, which takes slots from a network in training; bench "
            "all-to-all expects factor"
        )
    with start_runtime(config) as runtime:
        if rate is not None and runtime.topology.nodes == 1:
            raise InputError(
                "--rate is given, but parallel.ranks_per_node puts all ranks on one node; expected several nodes"
            )
        sizes = tuple(tokens) or sizes_up_to(
            micro_batch_sequences(config, runtime.topology.data) * config.model.sequence_length
        )
        wanted = TokensOfRank(
            max(sizes), config.moe.router.top_k, config.moe.num_experts, runtime.rank, runtime.world_size
        )
        if runtime.is_first:
            print(_head(config, runtime, rate, busiest_over_mean(routing, wanted)), flush=True)
        for size in sizes:
            for row in _measure(config, runtime, replace(wanted, tokens=size), rate, routing):
                if runtime.is_first:
                    print(line_of(row), flush=True)
    return 0


def sizes_up_to(tokens: int) -> Tuple[int, ...]:
    """SMALLEST, twice that, ..., and `tokens` itself."""
    sizes: List[int] = []
    while SMALLEST << len(sizes) < tokens:
        sizes.append(SMALLEST << len(sizes))
    return (*sizes, tokens)


def variants() -> List[Tuple[str, DispatchConfig]]:
    """What stands in a row, and the dispatch that makes it: every dispatcher, with as many chunks as it takes.
    `moe.dispatch` of the job gives the other keys that the dispatcher uses.
    """
    found = []
    for name, one in dispatchers().items():
        most = one.spec.most_chunks if "dispatch.chunks" in one.spec.keys else 1
        for chunks in (count for count in CHUNKS if count <= most):
            label = name if chunks == 1 else f"{name}, {chunks} chunks"
            found.append((label, DispatchConfig(type=name, chunks=chunks)))
    return found


def _measure(
    config: Config, runtime: Runtime, wanted: TokensOfRank, rate: Optional[float], routing: BenchRouting
) -> List[ExchangeTiming]:
    names, tokens = [name for name, _ in variants()], wanted.tokens
    launches = [_launch(config, runtime, name, dispatch, wanted, routing) for name, dispatch in variants()]
    barrier, total = runtime.collectives.barrier, HostSum(runtime.collectives, f"bench/{tokens}")
    in_turn(launches, WARM_UP, barrier)
    sent = [_bytes_of(launch, runtime, total) for launch in launches]
    plain = [
        _plain_exchanges(runtime, f"{name}/{tokens}", each) if rate is None else None for name, each in zip(names, sent)
    ]
    measured = iter(in_turn([launch for launch in (*launches, *plain) if launch is not None], ROUNDS, barrier))
    spent = [next(measured) for _ in launches]
    limits = [next(measured) if each is not None else None for each in plain]
    means = total.values(np.array([*spent, *(limit or 0.0 for limit in limits)])) / runtime.world_size
    by_plain = [None if limit is None else float(mean) for limit, mean in zip(limits, means[len(spent) :])]
    return [
        ExchangeTiming(tokens, name, float(second), each, limit if rate is None else link_limit(each, rate))
        for name, second, each, limit in zip(names, means, sent, by_plain)
    ]


def link_limit(sent: Optional[NodeBytes], rate: float) -> Optional[float]:
    """Seconds that the bytes between nodes take at `rate` bits a second."""
    return None if sent is None else sent.between * 8 / rate


def _launch(
    config: Config, runtime: Runtime, name: str, dispatch: DispatchConfig, wanted: TokensOfRank, routing: BenchRouting
) -> Callable[[], Any]:
    """A dispatcher's pass over random tokens that want the experts of `routing`."""
    # Nobody offers second experts here, hence no re-picking.
    moe = replace(
        config.moe,
        dispatch=replace(config.moe.dispatch, type=dispatch.type, chunks=dispatch.chunks, overflow="drop"),
    )
    tokens = wanted.tokens
    shape = replace(model_dims(config, 1, 1, even_vocabulary(config).domains), sequence_length=tokens)
    context = SparseContext(replace(config, moe=moe), shape, runtime.collectives)
    placement = ExpertPlacement(moe.num_experts, moe.num_groups, runtime.topology.expert, moe.expert_placement)
    dispatcher = build_dispatcher(context, placement, moe.capacity.factor, f"{CAUSE}/{name}/{tokens}")
    generator = np.random.default_rng(runtime.rank)
    x = random_tensor((tokens, shape.hidden_size), shape.compute_dtype)
    expert = routing.choices(wanted, generator)
    launch, weight = ForwardBackward(Dispatch(dispatcher)), Tensor(generator.random(expert.shape).astype(np.float32))
    return lambda: launch(x, Tensor(expert), weight, x)


def _bytes_of(launch: Callable[[], Any], runtime: Runtime, total: HostSum) -> Optional[NodeBytes]:
    """What one launch sends."""
    before = runtime.collectives.bytes_sent(CAUSE)
    seconds(launch)
    after = runtime.collectives.bytes_sent(CAUSE)
    own = np.zeros((2, runtime.topology.nodes))
    own[:, runtime.topology.node_of(runtime.rank)] = (
        after.intra_node - before.intra_node,
        after.inter_node - before.inter_node,
    )
    inside, between = total.values(own.reshape(-1)).reshape(own.shape).max(1)
    return NodeBytes(int(inside), int(between)) if after.counted else None


def _plain_exchanges(runtime: Runtime, tag: str, sent: Optional[NodeBytes]) -> Optional[Callable[[], None]]:
    """As many bytes over the slowest links that a dispatcher used, in EXCHANGES all-to-alls; None without a mesh."""
    if runtime.mesh is None or sent is None:
        return None
    kind, amount = ("ep_rail", sent.between) if sent.between else ("ep", sent.inside)
    ranks = runtime.topology.group_of(kind, runtime.rank)
    each = amount // runtime.topology.ranks_per_node // EXCHANGES // max(len(ranks) - 1, 1)
    return partial(_exchange, runtime.mesh, ranks, f"bench/plain/{tag}", np.zeros((len(ranks), each), np.uint8))


def _exchange(mesh: Mesh, ranks: Sequence[int], tag: str, array: np.ndarray) -> None:
    for _ in range(EXCHANGES):
        mesh.all_to_all(ranks, tag, array)


# ---- table


def _head(config: Config, runtime: Runtime, rate: Optional[float], busiest: float) -> str:
    moe, topology = config.moe, runtime.topology
    limit = "the same bytes in plain exchanges" if rate is None else f"bytes between nodes at {rate / 1e6:g} Mbit/s"
    return (
        f"{topology.world_size} ranks on {topology.nodes} {'nodes' if topology.nodes > 1 else 'node'}, hidden size "
        f"{config.model.hidden_size}, {moe.num_experts} experts, capacity factor {moe.capacity.factor:g}, "
        f"{config.runtime.precision}\n"
        f"bytes: of the node that sends most, a pass; limit: {limit}\n"
        f"busiest expert: {busiest:.2f} times the mean load\n\n" + "\n".join(text_table(_COLUMNS, []))
    )


def line_of(row: ExchangeTiming) -> str:
    """The row as 79 characters; `reached` is the limit over the time, and a dash stands for what is not known."""
    inside, between = ("-", "-") if row.sent is None else (f"{row.sent.inside:,}", f"{row.sent.between:,}")
    limit, reached = ("-", "-") if not row.limit else (f"{row.limit * 1e3:.2f}", f"{row.limit / row.seconds:.0%}")
    cells = (str(row.tokens), row.name, f"{row.seconds * 1e3:.2f}", inside, between, limit, reached)
    return text_table(_COLUMNS, [cells])[-1]
