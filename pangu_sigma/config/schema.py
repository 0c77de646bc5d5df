"""Every configuration key, its type, its default and its meaning: one frozen dataclass a section.

Here are network, sparse layers and parallelism; `pangu_sigma.config.schema_run` has how a run is fed, trained, kept and
executed. The loader (`pangu_sigma.config.load`) fills these from YAML and `--set`; nothing else defines a key, but for
the sections of routers, which their declarations do (`locmoe_ops.router_registry`). Fields are declared by
`locmoe_ops.keys.key`. Annotations are evaluated at run time on Python 3.9, hence `Optional[int]` and not `int | None`.
"""

from dataclasses import dataclass, fields, make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Optional, Tuple, Type

from locmoe_ops.dispatch.registry import DispatcherNames
from locmoe_ops.keys import key
from locmoe_ops.router_registry import BALANCE_KINDS, RegisteredRouter, routers
from locmoe_ops.topology import STATISTICS
from pangu_sigma.config.schema_run import CheckpointConfig, DataConfig, OptimizerConfig, RuntimeConfig, TrainConfig

MOST_BUCKETS = 32  # that the adaptive capacity can choose from; what a checkpoint keeps of it has room for as many


@dataclass(frozen=True)
class ModelConfig:
    hidden_size: int = key(256, "width d of the residual stream", minimum=1)
    num_heads: int = key(4, "attention heads; must divide hidden_size", minimum=1)
    ffn_hidden_size: Optional[int] = key(None, "inner width of dense FFN and experts; null: 4 x hidden_size", minimum=1)
    dense_layers: int = key(2, "lower decoder layers with a dense FFN", minimum=0, maximum=10000)
    sparse_layers: int = key(2, "upper decoder layers with experts", minimum=0, maximum=10000)
    sparse_query_layer: bool = key(False, "give the query layer on top experts instead of a dense FFN")
    sequence_length: int = key(256, "tokens a sequence; rows on disk hold one more", minimum=2)
    vocab_size: Optional[int] = key(
        None, "rows of the word table; null: as the prepared data's tokenizer says", minimum=1
    )
    domain_embeddings: bool = key(False, "one word-embedding slot per domain instead of one shared table")
    activation: str = key(
        "gelu", "FFN nonlinearity; gelu is the exact erf form", choices=("gelu", "gelu_tanh", "fast_gelu", "relu")
    )
    embedding_dropout: float = key(0.0, "dropout rate on embeddings", minimum=0.0, maximum=0.9)
    attention_dropout: float = key(0.0, "dropout rate on attention probabilities", minimum=0.0, maximum=0.9)
    hidden_dropout: float = key(0.0, "dropout rate on each sub-layer's output", minimum=0.0, maximum=0.9)
    init_std: float = key(0.02, "standard deviation of initial weights", above=0.0)
    layer_norm_epsilon: float = key(1e-5, "added to the variance in LayerNorm", above=0.0)
    final_norm: str = key(
        "before_query",
        "where the final norm stands: before the query layer, or after it, as in PanGu-alpha's public "
        "code where it is trained with pipeline parallelism",
        choices=("before_query", "after_query"),
    )


@dataclass(frozen=True)
class LocalityBiasConfig:
    """Preference for experts on a token's home node when experts are picked; ours, beyond the papers."""

    kind: str = key(
        "none",
        "none; bias: strength is added to a local expert's probability; margin: a local expert wins above "
        "(1 - strength) x the best probability",
        choices=("none", "bias", "margin"),
    )
    strength: float = key(
        0.1, "strength at the end of the schedule; gate weights stay the probabilities", minimum=0.0, maximum=1.0
    )
    initial_strength: float = key(0.0, "strength up to start_step", minimum=0.0, maximum=1.0)
    start_step: int = key(0, "last step of the initial strength", minimum=0)
    warmup_steps: int = key(
        0, "steps in which strength goes linearly from the initial to the final one; 0: a jump", minimum=0
    )


@dataclass(frozen=True)
class LocalityLossConfig:
    """How mu, the weight of the locality loss, gets to its final value, `locality_loss_weight` of the router's own
    section.
    """

    initial_weight: Optional[float] = key(
        None, "mu up to start_step; null: the router's locality_loss_weight in every step", minimum=0.0
    )
    start_step: int = key(0, "last step of the initial weight", minimum=0)
    warmup_steps: int = key(
        0, "steps in which mu goes linearly from the initial to the final weight; 0: a jump", minimum=0
    )


@dataclass(frozen=True)
class BalanceConfig:
    """Loss-free balance by a published rule: a bias on the choice, for each expert, that follows the load."""

    kind: str = key(
        "none",
        "what moves an expert's selection bias after each step: sign = a fixed amount against its excess "
        "(DeepSeek-V3); pid = a PID controller on its load; quantile = to what would have given it its share of the "
        "step's tokens (Kimi K3; not for node_limited and moge). Losses of balance keep their weights beside it",
        choices=BALANCE_KINDS,
    )
    rate: float = key(
        0.001, "sign: what a bias moves by; pid: gain of the integral (DeepSeek-V3: 0.001)", above=0.0, maximum=0.1
    )
    proportional: float = key(0.0, "pid: gain of the error of the last step", minimum=0.0, maximum=1.0)
    derivative: float = key(
        0.0, "pid: gain of what the error has changed by since the step before", minimum=0.0, maximum=1.0
    )
    bins: int = key(
        1000,
        "quantile: bins of each expert's histogram (Kimi K3: 1000); so many numbers an expert and sparse layer are "
        "summed over ranks in each step",
        minimum=10,
        maximum=10000,
    )


@dataclass(frozen=True)
class RouterConfig:
    """The keys that all routers share. What a configuration holds is `router_config()`, which has each router's section
    too.
    """

    type: str = key(
        "locmoe", "which level-2 router picks the expert; a section of its name holds each router's own keys"
    )
    top_k: int = key(1, "experts a token is sent to (gshard: 2)", minimum=1)
    statistics: str = key(
        "global",
        "tokens over which a loss's statistics are taken: of one rank, one node, one expert-parallel group (as Pangu "
        "Ultra MoE has it, arXiv 2505.04519), or all ranks (ta_moe: one node at most, its targets being those of a "
        "node)",
        choices=STATISTICS,
    )
    balance_rate: float = key(
        0.0,
        "ours (not for hash, gshard, faster_moe, ta_moe): after each step an expert's selection bias moves by at most "
        "this much towards an even load; 0: none",
        minimum=0.0,
        maximum=0.1,
    )
    balance: BalanceConfig = key(BalanceConfig, "loss-free balance by a published rule, in place of balance_rate")
    locality_bias: LocalityBiasConfig = key(
        LocalityBiasConfig, "preference for local experts in the selection (not for hash and faster_moe)"
    )
    locality_loss: LocalityLossConfig = key(
        LocalityLossConfig, "schedule of the locality loss's weight (of routers that have it: locmoe, etr)"
    )

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A router's section."""

    @property
    def own(self) -> Any:
        """The section of the router that `type` names."""
        return getattr(self, self.type)


@dataclass(frozen=True)
class LayerRouterConfig:
    """An entry of `moe.routers`. What a configuration holds is `layer_router_config()`, which has each router's section
    too, null where it is that of `moe.router`.
    """

    layers: Tuple[int, ...] = key(
        (),
        "the sparse layers that it is for, counted from 0, bottom up, the query layer last if it is sparse",
        minimum=0,
    )
    type: Optional[str] = key(
        None, "the router of these layers, with a section of its name as in moe.router; null: moe.router.type"
    )
    locality_bias: bool = key(True, "false: these layers' routers are without moe.router.locality_bias")

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A router's section, or null."""


def router_config() -> Type[RouterConfig]:
    """`RouterConfig` with a section for each router that there is now."""
    found: Type[RouterConfig] = _with_sections(RouterConfig, tuple(routers().values()))
    return found


def layer_router_config() -> Type[LayerRouterConfig]:
    """`LayerRouterConfig` with a section for each router that there is now."""
    found: Type[LayerRouterConfig] = _with_sections(LayerRouterConfig, tuple(routers().values()))
    return found


@cache
def _with_sections(base: Type[Any], known: Tuple[RegisteredRouter, ...]) -> Type[Any]:
    """`base` with sections for the routers `known`; those of an entry of `moe.routers` may be null."""
    shared, of_entry = next(one for one in fields(base) if one.name == "type"), base is LayerRouterConfig
    chosen = key(
        shared.default,
        shared.metadata["help"],
        choices=tuple(one.name for one in known),
        hint="for one of your own, --router-file FILE",
    )
    sections: Any = []
    for one in known:
        options: Any = one.spec.options
        help = f"keys of the {one.name} router"
        limits = {"external": one.external, "of_entry": of_entry}
        if of_entry:
            sections.append((one.name, Optional[options], key(None, f"{help}; those left out are as there", **limits)))
        else:
            sections.append((one.name, options, key(options, help, **limits)))
    kind = Optional[str] if of_entry else str
    found = make_dataclass(base.__name__, [("type", kind, chosen), *sections], bases=(base,), frozen=True)
    found.__module__ = __name__
    return found


@dataclass(frozen=True)
class DispatchConfig:
    type: str = key(
        "flat",
        "how tokens travel: flat = one padded all-to-all over the expert-parallel group; hierarchical = own-node "
        "tokens stay inside the node, the rest crosses along rails with slots of its own; node_dedup = the same, but a "
        "token that wants several experts of a node (router.top_k above 1) travels there once; ragged = unequal parts, "
        "no slots: nothing is dropped, no padding travels (moe.capacity plays no part)",
        choices=DispatcherNames(),
    )
    ragged_limit: Optional[float] = key(
        None,
        "ragged dispatch: rows that a rank has room for, over an even load; more end the job; "
        "null: room for all tokens of all ranks, at the price of as much computation (of as much memory alone with "
        "runtime.fused.experts)",
        minimum=1.0,
    )
    chunks: int = key(
        1,
        "slices that travel while others are with the experts; hierarchical, node_dedup: 1 or 2 (2 overlaps the two "
        "tiers)",
        minimum=1,
        maximum=16,
    )
    group_wise: bool = key(
        False,
        "ranks of a tensor-parallel group, which hold the same tokens, each send a share of them to other nodes "
        "and put the shares together over the node's own links; false: each sends all",
    )
    drop_priority: str = key(
        "position",
        "which tokens keep their slots on overflow: earlier ones, or those of larger gate weight",
        choices=("position", "weight"),
    )
    overflow: str = key(
        "drop",
        "a token without a slot is dropped, or re-picked once: to the best expert of its group on its home node "
        "that it had not chosen, with that one's weight, if a slot is left there (not for hash and gshard)",
        choices=("drop", "repick"),
    )


@dataclass(frozen=True)
class MeasuredShareConfig:
    """The far tier of hierarchical dispatch follows the share of assignments that leave their node, measured in
    training. What it has room for is one of a few shares: that of an even spread, a half of it, a quarter and so on,
    and at last none. Each is a graph of its own.
    """

    interval: int = key(100, "steps between measurements", minimum=1)
    buckets: int = key(
        4, "shares that the far tier may have room for, and so most graphs to compile", minimum=2, maximum=MOST_BUCKETS
    )
    hysteresis: float = key(
        0.1, "the far tier shrinks only as far as this share of it would stay free", minimum=0.0, maximum=0.99
    )


@dataclass(frozen=True)
class CapacityConfig:
    mode: str = key(
        "factor",
        "factor: slots = ceil(factor x top_k x tokens / experts that compete for them); critical: by LocMoE's "
        "bound, measured on the first batches and kept; adaptive: by the bound, measured again every `interval` steps",
        choices=("factor", "critical", "adaptive"),
    )
    factor: float = key(1.25, "capacity factor in training (mode factor)", above=0.0)
    evaluation_factor: float = key(2.0, "capacity factor in evaluation", above=0.0)
    local_share: Optional[float] = key(
        None,
        "hierarchical, node_dedup dispatch: share of a rank's assignments that its node's experts get slots "
        "for, the rest being for the other nodes'; 1: nothing leaves its node; null: the node's "
        "share of the experts",
        above=0.0,
        maximum=1.0,
    )
    measured_share: Optional[MeasuredShareConfig] = key(
        None,
        "hierarchical, node_dedup dispatch: the share of assignments that leave their node is measured in training, "
        "and the tier between nodes has slots for so many; null: local_share says how many",
    )
    node_share: Optional[float] = key(
        None,
        "node_dedup dispatch: share of a rank's tokens that each other node has slots for copies of, at capacity "
        "factor 1; M / V is enough for a router that sends a token to M of V nodes; null: that of an even spread of "
        "choices",
        above=0.0,
        maximum=1.0,
    )
    form: str = key(
        "exact",
        "critical, adaptive: form of the bound; exact is Theorem 1, exp what LocMoE+ works with",
        choices=("exact", "erfc", "exp"),
    )
    delta_statistic: str = key(
        "maximum",
        "critical, adaptive: delta is this statistic of the cosines between the tokens of a sequence "
        "and the gate weights of their experts, averaged over sequences",
        choices=("maximum", "mean", "quantile", "minimum"),
    )
    quantile: float = key(
        0.99, "share of tokens whose cosine delta is not below (delta_statistic quantile)", minimum=0.0, maximum=1.0
    )
    minimum_factor: float = key(
        0.0, "critical, adaptive: slots never fall below this capacity factor; 0: the bound as it is", minimum=0.0
    )
    maximum_factor: Optional[float] = key(
        None, "critical, adaptive: slots never exceed this capacity factor; null: no limit", above=0.0
    )
    estimate_steps: int = key(
        1, "critical, adaptive: steps whose batches the first estimate is made of", minimum=1, maximum=64
    )
    interval: int = key(100, "adaptive: steps between measurements", minimum=1)
    buckets: int = key(
        8, "adaptive: most slot counts to choose from, and so most graphs to compile", minimum=1, maximum=MOST_BUCKETS
    )
    hysteresis: float = key(
        0.1,
        "adaptive: slots fall only as far as this share of the smaller bucket would stay free",
        minimum=0.0,
        maximum=0.99,
    )


@dataclass(frozen=True)
class LogicalTopologyConfig:
    """A cluster that losses and statistics refer to, whatever number of processes runs the job."""

    world_size: int = key(1, "ranks", minimum=1)
    ranks_per_node: int = key(1, "ranks a node", minimum=1)
    expert: int = key(1, "expert-parallel degree", minimum=1)


@dataclass(frozen=True)
class MoEConfig:
    num_experts: int = key(8, "experts a sparse layer, over all groups", minimum=1, maximum=1000000)
    shared_experts: int = key(
        0,
        "further experts of a sparse layer, which every token passes through beside those that its router picks: one "
        "network of so many times model.ffn_hidden_size, which every rank holds. num_experts does not count them",
        minimum=0,
    )
    num_groups: int = key(1, "expert groups of level 1 (domain -> group); must divide num_experts", minimum=1)
    domain_groups: Optional[Tuple[int, ...]] = key(
        None, "group of each domain; null: domain i uses group i, or 0 if there is one group"
    )
    expert_placement: str = key(
        "interleaved",
        "interleaved: each group spread over all ranks; node_grouped: a group's experts side by side",
        choices=("interleaved", "node_grouped"),
    )
    scale_by_gate: bool = key(
        True, "multiply expert outputs by their gate weight (hash without a gate: 1 / top_k); false: by 1 / top_k"
    )
    initial_experts: str = key(
        "independent",
        "independent: every expert drawn by itself; copies: those of a group begin as one network, "
        "as after inheritance from a dense model (PanGu-Sigma)",
        choices=("independent", "copies"),
    )
    evaluation_rules: str = key(
        "trained",
        "validation in training, and eval --as-trained. trained: local term, cap on remote choices and slots "
        "(capacity.evaluation_factor) as in training; none: no such rule, and a slot for every token: the model is "
        "measured without rules of locality",
        choices=("trained", "none"),
    )
    logical_topology: Optional[LogicalTopologyConfig] = key(
        None, "cluster that locality and per-node statistics refer to; null: the one that runs the job"
    )
    router: RouterConfig = key(lambda: router_config()(), "level-2 routing")
    routers: Tuple[LayerRouterConfig, ...] = key(
        (),
        "routers of single layers, a list of entries such as {layers: [0, 1], type: hash}; layers that no entry names "
        "have moe.router. An entry's section holds what differs from moe.router's of the same name; the keys that all "
        "routers share are those of moe.router, and hold in the layers whose routers take them",
    )
    dispatch: DispatchConfig = key(DispatchConfig, "how tokens reach their experts")
    capacity: CapacityConfig = key(CapacityConfig, "slots per expert")


@dataclass(frozen=True)
class ParallelConfig:
    expert: int = key(1, "expert-parallel degree; must divide the number of ranks and moe.num_experts", minimum=1)
    tensor: int = key(
        1,
        "ranks of a node that share out attention heads, FFN and expert widths and the vocabulary; must divide each",
        minimum=1,
    )
    overlap_gradients: bool = key(
        True, "sum gradients of dense weights over ranks while the backward pass continues below them"
    )
    bucket_mb: Optional[float] = key(
        None,
        "most MB of float32 gradients in a message that leaves during the backward pass (or one larger tensor); null: "
        "0.5 on tcp, on hccl as suits the chip (pangu_sigma/config/chips.py)",
        minimum=0.01,
        maximum=4096.0,
    )
    reduce_precision: str = key(
        "fp32",
        "type in which gradients travel to their sum over ranks: fp32, or runtime.precision, half the bytes. They are "
        "added in float32 either way (an all-to-all, each rank's own sum, an all-gather), and rounded to that type "
        "when they are sent",
        choices=("fp32", "fp16", "bf16"),
    )
    all_to_all: str = key(
        "native",
        "how tokens travel: by the backend's all-to-all, or (gathered) by an all-gather of which each rank keeps its "
        "part, for groups in which HCCL has no all-to-all (910A); P times the bytes among P ranks",
        choices=("native", "gathered"),
    )
    ranks_per_node: Optional[int] = key(
        None, "ranks a node; null: all of them; give it to let one machine play several nodes", minimum=1
    )
    nodes: Optional[int] = key(
        None,
        "nodes that `plan` takes unless told otherwise; null: the fewest that hold all experts. A job runs on as many "
        "as are started",
        minimum=1,
    )


@dataclass(frozen=True)
class Config:
    model: ModelConfig = key(ModelConfig, "the network")
    moe: MoEConfig = key(MoEConfig, "sparse layers")
    parallel: ParallelConfig = key(ParallelConfig, "degrees of parallelism; data parallel is what remains")
    data: DataConfig = key(DataConfig, "corpora and sampling")
    optimizer: OptimizerConfig = key(OptimizerConfig, "hybrid Adam and its schedule")
    train: TrainConfig = key(TrainConfig, "the run")
    checkpoint: CheckpointConfig = key(CheckpointConfig, "saving and resuming")
    runtime: RuntimeConfig = key(RuntimeConfig, "device, backend, precision, deadlines")
