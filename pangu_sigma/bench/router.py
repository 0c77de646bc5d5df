"""`pangu-sigma bench router`: every router alone, forward and backward, on the tokens of one rank.

The rank is one of the smallest job that the configuration fits, or of `moe.logical_topology`. Times are given against
that of the dense gate, the switch router's. The local term and the balance bias are off: not all routers can have them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import numpy as np

import mindspore as ms
from mindspore import Tensor, nn

from locmoe_ops.collectives.local import LocalCollectives
from locmoe_ops.errors import InputError
from locmoe_ops.moe import MultiLevelRouting
from locmoe_ops.router_registry import router_spec, routers
from locmoe_ops.topology import ExpertPlacement, Topology
from pangu_sigma.bench.timing import (
    ROUNDS,
    WARM_UP,
    ForwardBackward,
    TimedRouting,
    even_vocabulary,
    in_turn,
    random_tensor,
)
from pangu_sigma.config.derived import has_experts, micro_batch_sequences
from pangu_sigma.config.schema import (
    BalanceConfig,
    CapacityConfig,
    Config,
    DispatchConfig,
    LocalityBiasConfig,
    LocalityLossConfig,
    LogicalTopologyConfig,
    ParallelConfig,
    RouterConfig,
)
from pangu_sigma.config.validate import validate
from pangu_sigma.model.dims import ModelDims, model_dims
from pangu_sigma.model.sparse import SparseContext, build_router
from pangu_sigma.runtime.runtime import start_runtime
from pangu_sigma.runtime.text_table import TableColumn, text_table

DENSE_GATE = "switch"


class Candidate(NamedTuple):
    """A row of the table, and the configuration that makes it."""

    name: str
    config: Config


def bench_router(config: Config) -> int:
    """Prints the table; returns 0. Raises InputError for a configuration that no router fits."""
    base = one_rank_of(config)
    candidates, left_out = routers_of(base)
    with start_runtime(base):
        sent = [_bytes_reduced(candidate.config) for candidate in candidates]
        launches = [_launch(candidate.config, LocalCollectives(0, Topology(1, 1))) for candidate in candidates]
        in_turn(launches, WARM_UP)
        spent = in_turn(launches, ROUNDS)
    _print(base, [candidate.name for candidate in candidates], spent, sent, left_out)
    return 0


def one_rank_of(config: Config) -> Config:
    """The configuration for one process that does what one rank of its job does; its cluster becomes
    `moe.logical_topology`. A model without experts gets a sparse layer, for there is nothing to route in it.
    """
    parallel, layout = config.parallel, config.moe.logical_topology
    if layout is None:
        ranks_per_node = parallel.ranks_per_node or parallel.expert
        layout = LogicalTopologyConfig(max(parallel.expert, ranks_per_node), ranks_per_node, parallel.expert)
    rows = micro_batch_sequences(config, layout.world_size)
    # The rank's own rows are its batch; those of the layout only tell how many that is.
    return replace(
        config,
        model=config.model if has_experts(config) else replace(config.model, sparse_layers=1),
        parallel=ParallelConfig(),
        moe=replace(config.moe, logical_topology=layout),
        train=replace(config.train, global_batch_size=rows * layout.world_size, micro_batch_size=rows),
    )


def routers_of(config: Config) -> Tuple[List[Candidate], List[str]]:
    """All routers that the configuration fits, the dense gate first, and why others are left out."""
    candidates, left_out = [], []
    for kind in sorted(routers(), key=lambda kind: kind != DENSE_GATE):
        for name, router in _settings(config.moe.router, kind):
            # No token moves here, so of dispatch and capacity only whether second experts are offered matters.
            dispatch = DispatchConfig(drop_priority="weight", overflow=config.moe.dispatch.overflow)
            moe = replace(config.moe, router=router, routers=(), dispatch=dispatch, capacity=CapacityConfig())
            candidate = Candidate(name, replace(config, moe=moe))
            try:
                validate(candidate.config, 1)
            except InputError as error:
                if kind == DENSE_GATE:
                    raise
                left_out.append(f"{name}: {error}")
            else:
                candidates.append(candidate)
    return candidates, left_out


def _settings(router: RouterConfig, kind: str) -> List[Tuple[str, RouterConfig]]:
    router = replace(
        router,
        type=kind,
        locality_bias=LocalityBiasConfig(),
        locality_loss=LocalityLossConfig(),
        balance_rate=0.0,
        balance=BalanceConfig(),
        top_k=router_spec(kind).top_k or router.top_k,
    )
    if kind != "locmoe":
        return [(kind, router)]
    grap, dense = replace(router.locmoe, gate="grap"), replace(router.locmoe, gate="dense", blocks="contiguous")
    gates: Dict[str, Any] = {"locmoe, grap gate": grap, "locmoe, dense gate": dense}
    return [(name, replace(router, **{"locmoe": section})) for name, section in gates.items()]


def _shape_of(config: Config) -> ModelDims:
    vocabulary = even_vocabulary(config)
    return model_dims(config, config.train.micro_batch_size or 1, vocabulary.vocab_size, vocabulary.domains)


def _launch(config: Config, collectives: LocalCollectives) -> Callable[[], Any]:
    """The router's pass over random tokens of all domains."""
    cell, inputs = _routing(config, collectives)
    launch, gradient = ForwardBackward(cell), random_tensor((inputs[0].shape[0], config.moe.router.top_k))
    return lambda: launch(*inputs, gradient)


def _routing(config: Config, collectives: LocalCollectives) -> Tuple[nn.Cell, List[Tensor]]:
    """Routing of the first sparse layer, and inputs for it."""
    shape, moe = _shape_of(config), config.moe
    generator = np.random.default_rng(0)
    context = SparseContext(config, shape, collectives, even_vocabulary(config).counts, reads_files=False)
    placement = ExpertPlacement(moe.num_experts, moe.num_groups, context.layout.expert, moe.expert_placement)
    cell = TimedRouting(MultiLevelRouting(context.domain_groups, build_router(context, 0, placement)))
    ids, domain = (
        Tensor(generator.integers(0, limit, shape.tokens).astype(np.int32))
        for limit in (shape.vocab_size, shape.domains)
    )
    return cell, [random_tensor((shape.tokens, shape.hidden_size), shape.compute_dtype), ids, domain]


def _bytes_reduced(config: Config) -> int:
    """Bytes that the router hands to collectives in a forward pass, counted while it runs operation by operation."""
    counting = CountingCollectives()
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        cell, inputs = _routing(config, counting)
        cell(*inputs)
    finally:
        ms.set_context(mode=mode)
    return sum(counting.sizes)


class CountingCollectives(LocalCollectives):
    """Those of one process, which note in `sizes` how many bytes they are handed. For PyNative mode: a graph would note
    nothing.
    """

    def __init__(self) -> None:
        super().__init__(0, Topology(1, 1))
        self.sizes: List[int] = []

    def _cell_or_identity(self, operation: str, group: str, tag: str, root: int = 0) -> nn.Cell:
        return _Noted(self.sizes.append)


class _Noted(nn.Cell):
    def __init__(self, note: Callable[[int], None]) -> None:
        super().__init__()
        self.note = note

    def construct(self, x: Tensor) -> Tensor:
        self.note(x.nbytes)
        return x


# ---- table


def _print(config: Config, names: List[str], spent: List[float], sent: List[int], left_out: List[str]) -> None:
    shape, moe = _shape_of(config), config.moe
    print(
        f"{shape.tokens} tokens of one of {moe.logical_topology.world_size if moe.logical_topology else 1} ranks, "
        "hidden size "
        f"{shape.hidden_size}, {moe.num_experts} experts in {moe.num_groups} groups, {config.runtime.precision}\n"
        "statistics: bytes that enter all-reduces of a forward pass, as many of a backward pass\n"
    )
    dense = spent[names.index(DENSE_GATE)]
    titles = ("ms", f"of {DENSE_GATE}", "statistics (B)")
    rows = [
        (name, f"{second * 1e3:.3f}", f"{second / dense:.2f}", f"{size:,}")
        for name, second, size in zip(names, spent, sent)
    ]
    print("\n".join(text_table([TableColumn("router", "<"), *map(TableColumn, titles)], rows)))
    for reason in left_out:
        print(f"left out: {reason}")
