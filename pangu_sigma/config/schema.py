"""Every configuration key, its type, its default and its meaning: one frozen dataclass a section.

The loader (`pangu_sigma.config.load`) fills these from YAML and `--set`; nothing else defines a key, but for the
sections of routers, which their declarations do (`locmoe_ops.router_registry`). Fields are declared by
`locmoe_ops.keys.key`. Annotations are evaluated at run time on Python 3.9, hence `Optional[int]` and not `int | None`.
"""

from dataclasses import dataclass, fields, make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple, Type

from locmoe_ops.dispatch.registry import DispatcherNames
from locmoe_ops.keys import key
from locmoe_ops.router_registry import RegisteredRouter, routers

MOST_BUCKETS = 32  # that the adaptive capacity can choose from; what a checkpoint keeps of it has room for as many


@dataclass(frozen=True)
class ModelConfig:
    hidden_size: int = key(256, "width d of the residual stream", minimum=1)
    num_heads: int = key(4, "attention heads; must divide hidden_size", minimum=1)
    ffn_hidden_size: Optional[int] = key(None, "inner width of dense FFN and experts; null: 4 x hidden_size", minimum=1)
    dense_layers: int = key(2, "lower decoder layers with a dense FFN", minimum=0)
    sparse_layers: int = key(2, "upper decoder layers with experts", minimum=0)
    sparse_query_layer: bool = key(False, "give the query layer on top experts instead of a dense FFN")
    sequence_length: int = key(256, "tokens a row; rows on disk hold one more", minimum=2)
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
class LocalTermConfig:
    """SelectionBias for experts on a token's home node when experts are picked; ours, beyond the papers."""

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
class RouterConfig:
    """The keys that all routers share. What a configuration holds is `router_config()`, which has each router's section
    too.
    """

    type: str = key(
        "locmoe", "which level-2 router picks the expert; a section of its name holds each router's own keys"
    )
    top_k: int = key(1, "experts a token is sent to (hash: 1, gshard: 2)", minimum=1)
    statistics: str = key(
        "global",
        "tokens over which a loss's statistics are taken: of one rank, one node, or all ranks "
        "(ta_moe: one node, its targets being those of a node)",
        choices=("rank", "node", "global"),
    )
    balance_rate: float = key(
        0.0,
        "ours (switch, locmoe, etr): after each step an expert's selection bias moves by at most this much "
        "towards an even load; 0: none",
        minimum=0.0,
        maximum=0.1,
    )
    local_term: LocalTermConfig = key(
        LocalTermConfig, "preference for local experts in the selection (not for hash and faster_moe)"
    )

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A router's section."""

    @property
    def own(self) -> Any:
        """The section of the router that `type` names."""
        return getattr(self, self.type)


def router_config() -> Type[RouterConfig]:
    """`RouterConfig` with a section for each router that there is now."""
    return _with_sections(tuple(routers().values()))


@cache
def _with_sections(known: Tuple[RegisteredRouter, ...]) -> Type[RouterConfig]:
    shared = next(one for one in fields(RouterConfig) if one.name == "type")
    chosen = key(
        shared.default,
        shared.metadata["help"],
        choices=tuple(one.name for one in known),
        hint="for one of your own, --router-file FILE",
    )
    sections: Any = [
        (one.name, one.spec.options, key(one.spec.options, f"keys of the {one.name} router", external=one.external))
        for one in known
    ]
    found = make_dataclass("RouterConfig", [("type", str, chosen), *sections], bases=(RouterConfig,), frozen=True)
    found.__module__ = __name__
    return found


@dataclass(frozen=True)
class DispatchConfig:
    type: str = key(
        "flat",
        "how tokens travel: flat = one padded all-to-all over the expert-parallel group; hierarchical = own-node "
        "tokens stay inside the node, the rest crosses along rails with slots of its own; ragged = unequal parts, no "
        "slots: nothing is dropped, no padding travels (moe.capacity plays no part)",
        choices=DispatcherNames(),
    )
    ragged_limit: Optional[float] = key(
        None,
        "ragged dispatch: rows that a rank has room for, over an even load; more end the job; "
        "null: room for all tokens of all ranks, at the price of as much computation",
        minimum=1.0,
    )
    chunks: int = key(
        1,
        "slices that travel while others are with the experts; hierarchical: 1 or 2 (2 overlaps the two tiers)",
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
        "hierarchical dispatch: share of a rank's assignments that its node's experts get slots "
        "for, the rest being for the other nodes'; 1: nothing leaves its node; null: the node's "
        "share of the experts",
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
class LayoutConfig:
    """A cluster that losses and statistics refer to, whatever number of processes runs the job."""

    world_size: int = key(1, "ranks", minimum=1)
    ranks_per_node: int = key(1, "ranks a node", minimum=1)
    expert: int = key(1, "expert-parallel degree", minimum=1)


@dataclass(frozen=True)
class MoEConfig:
    num_experts: int = key(8, "experts a sparse layer, over all groups", minimum=1)
    num_groups: int = key(1, "expert groups of level 1 (domain -> group); must divide num_experts", minimum=1)
    domain_groups: Optional[Tuple[int, ...]] = key(
        None, "group of each domain; null: domain i uses group i, or 0 if there is one group"
    )
    placement: str = key(
        "interleaved",
        "interleaved: each group spread over all ranks; node_grouped: a group's experts side by side",
        choices=("interleaved", "node_grouped"),
    )
    scale_by_gate: bool = key(
        True, "multiply expert outputs by their gate weight (hash never does); false: by 1 / top_k"
    )
    initial_experts: str = key(
        "independent",
        "independent: every expert drawn by itself; copies: those of a group begin as one network, "
        "as after inheritance from a dense model (PanGu-Sigma)",
        choices=("independent", "copies"),
    )
    layout: Optional[LayoutConfig] = key(
        None, "cluster that locality and per-node statistics refer to; null: the one that runs the job"
    )
    router: RouterConfig = key(lambda: router_config()(), "level-2 routing")
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
        True, "sum gradients of dense weights over ranks while the backward pass goes on below them"
    )
    ranks_per_node: Optional[int] = key(
        None, "ranks a node; null: all of them; give it to let one machine play several nodes", minimum=1
    )


@dataclass(frozen=True)
class PrepareConfig:
    sources: Dict[str, str] = key(
        dict,
        "domain name -> folder of text files, or one file; a JSONL file has a `text` field (and perhaps "
        "`domain`) on each line. docs/tutorial.md says which files of a folder are read",
    )
    vocab_size: int = key(8000, "pieces of the tokenizer to train", minimum=300)
    tokenizer: Optional[str] = key(None, "existing SentencePiece model to use instead of training one")
    tokenizer_training_bytes: int = key(
        20_000_000, "at most this much text, evenly over domains, trains the tokenizer", minimum=10_000
    )
    validation_fraction: float = key(
        0.02, "share of documents held out, chosen by a hash of their text", above=0.0, maximum=0.5
    )
    document_bytes: int = key(
        20_000, "longer documents are cut at line ends into pieces of about this size", minimum=200
    )
    max_bytes_per_domain: Optional[int] = key(None, "stop reading a domain's source after this much text", minimum=1)


@dataclass(frozen=True)
class DataConfig:
    path: str = key("data", "folder written by `pangu-sigma prepare`")
    placement: str = key(
        "shuffled",
        "which rows a rank sees: any, or the domains placed on its node (with moe.placement node_grouped, "
        "ranks of other domains then get no slots: those that share a domain exchange by themselves)",
        choices=("shuffled", "domain_by_node"),
    )
    mixing: str = key(
        "balanced",
        "domains in equal shares within every rank's rows, or in proportion to their size",
        choices=("balanced", "proportional"),
    )
    reset_at_document_end: bool = key(True, "restart positions and block attention at document ends")
    prepare: PrepareConfig = key(PrepareConfig, "used by `pangu-sigma prepare` only")


@dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = key(3e-4, "peak learning rate", above=0.0)
    end_learning_rate: float = key(2e-5, "learning rate at the end of decay", minimum=0.0)
    schedule: str = key("cosine", "shape of the decay after warm-up", choices=("constant", "linear", "cosine"))
    warmup_steps: int = key(100, "steps of linear warm-up", minimum=0)
    decay_steps: Optional[int] = key(None, "step at which decay ends; null: train.steps", minimum=1)
    beta1: float = key(0.8, "Adam first-moment decay", minimum=0.0, maximum=0.9999)
    beta2: float = key(0.95, "Adam second-moment decay", minimum=0.0, maximum=0.99999)
    epsilon: float = key(1e-8, "Adam epsilon outside experts", above=0.0)
    expert_epsilon: float = key(1e-20, "Adam epsilon inside experts (hybrid Adam of PanGu-Sigma)", above=0.0)
    weight_decay: float = key(0.01, "decoupled weight decay of matrices (not biases, norms)", minimum=0.0)
    experts: str = key(
        "device",
        "where experts' optimizer state is and whom a step updates: device (all); host_dense (all, the state in "
        "host memory); host_lazy (likewise, but idle experts stay as they are)",
        choices=("device", "host_dense", "host_lazy"),
    )
    shard: str = key(
        "none",
        "optimizer state whole on every rank, or (data_parallel) shared out over the ranks that hold the same "
        "parameters, ZeRO-1; what experts keep on the host is not shared out",
        choices=("none", "data_parallel"),
    )
    clip_norm: Optional[float] = key(
        1.0, "global gradient-norm limit over all parameters on all ranks; null: none", above=0.0
    )


@dataclass(frozen=True)
class TrainConfig:
    steps: int = key(1000, "optimizer steps of the whole run", minimum=1)
    stop_after: Optional[int] = key(
        None, "end after this step as if cut off there; the schedule still follows `steps`", minimum=1
    )
    seed: int = key(1, "seed of initialisation, hash maps, sampling and dropout", minimum=0)
    global_batch_size: int = key(8, "rows an optimizer step, over all ranks", minimum=1)
    micro_batch_size: Optional[int] = key(
        None, "rows a rank processes at once; null: global_batch_size / ranks", minimum=1
    )
    output_dir: str = key("runs/default", "run directory")
    log_interval: int = key(10, "steps between console lines, and between reports of the slowest rank", minimum=1)
    straggler_margin: float = key(
        0.2,
        "the slowest rank is named in the log if its own computation takes longer than the median rank's by this share",
        above=0.0,
    )
    eval_interval: int = key(0, "steps between validations; 0: only at the end", minimum=0)
    eval_rows: int = key(
        64, "validation rows (over all ranks and domains) of one validation; 0: no validation", minimum=0
    )
    divergence_patience: int = key(
        50,
        "steps in a row with a loss that is not finite (or above 709 nats a token), or without an update, "
        "after which the run ends with status 1; 0: it goes on regardless",
        minimum=0,
    )
    tensorboard: bool = key(
        False, "also write TensorBoard's event files, to output_dir/tensorboard (needs tensorboardX)"
    )
    profile: Optional[Tuple[int, ...]] = key(
        None,
        "first and last of the steps to profile, as in [20, 24]: by MindSpore's profiler on "
        "Ascend, by this project's timers on CPU; null: none",
        minimum=1,
    )
    tracker: str = key(
        "none",
        "also hand each step's numbers to this library, Weights & Biases or SwanLab, by its own settings",
        choices=("none", "wandb", "swanlab"),
    )
    cosines: bool = key(
        True, "leave cosines.json at the end: cosines between tokens, and between tokens and gate weights, of one batch"
    )


@dataclass(frozen=True)
class CheckpointConfig:
    interval: int = key(0, "steps between checkpoints; 0: only at the end", minimum=0)
    keep_last: int = key(
        2,
        "newest checkpoints kept (two at least while a run goes on: only the next step tells "
        "whether the newest is any good)",
        minimum=1,
    )
    keep_every: int = key(0, "checkpoints whose step is a multiple of this are kept for good; 0: none", minimum=0)
    asynchronous: bool = key(
        True, "write beside training, which waits for a copy of the state only; false: training waits for the disk"
    )
    resume: Optional[str] = key(
        None, "null: start anew; auto: newest whole checkpoint of output_dir if any; or a checkpoint folder"
    )
    initial: Optional[str] = key(
        None,
        "checkpoint folder whose weights a new run begins with, as `ckpt inherit` and `ckpt extract` "
        "write them (resume auto: unless there is a checkpoint to go on from)",
    )


@dataclass(frozen=True)
class LossScaleConfig:
    """Dynamic loss scale, used with fp16 only."""

    initial: float = key(65536.0, "first loss scale", above=0.0, maximum=8e37)
    growth_interval: int = key(1000, "steps without overflow before the scale doubles", minimum=1)
    minimum: float = key(1.0, "never below this", above=0.0, maximum=8e37)


@dataclass(frozen=True)
class HcclConfig:
    """HCCL's own settings (backend hccl); null: what the environment says, else HCCL's default."""

    buffer_mb: Optional[int] = key(
        None, "HCCL_BUFFSIZE: MB of each of the two buffers of a process group", minimum=1, maximum=1048576
    )
    connect_timeout: Optional[int] = key(
        None, "HCCL_CONNECT_TIMEOUT: seconds in which a group's ranks must have connected", minimum=120, maximum=7200
    )
    exec_timeout: Optional[int] = key(
        None,
        "HCCL_EXEC_TIMEOUT: seconds a collective may wait for its peers; 0: for ever (not on 910A)",
        minimum=0,
        maximum=2147483647,
    )


@dataclass(frozen=True)
class DeviceMemoryConfig:
    """MindSpore's memory pool on Ascend (mindspore.runtime.set_memory); null: its default."""

    initial_gb: Optional[float] = key(None, "size of the pool at first", minimum=0.1, maximum=1024.0)
    increase_gb: Optional[float] = key(None, "what the pool grows by", minimum=0.1, maximum=1024.0)
    maximum_gb: Optional[float] = key(None, "what the pool never exceeds", minimum=0.1, maximum=1024.0)


@dataclass(frozen=True)
class FusedConfig:
    """Ascend's fused kernels in place of what is plain MindSpore otherwise. On Ascend only, where they were compiled
    but never run.
    """

    attention: bool = key(
        False,
        "FlashAttentionScore for scores, softmax and mixing (fp16 or bf16, no attention dropout, head sizes of "
        "multiples of 16)",
    )
    experts: bool = key(False, "GroupedMatmul for the two products of all local experts")
    permute: bool = key(
        False, "MoeTokenPermute and MoeTokenUnpermute for sorting tokens by expert and back (ragged dispatch)"
    )


@dataclass(frozen=True)
class RuntimeConfig:
    backend: str = key(
        "auto",
        "collectives: MindSpore primitives (hccl) or the CPU mesh (tcp); auto: by device",
        choices=("auto", "hccl", "tcp"),
    )
    device: str = key("auto", "auto: Ascend where MindSpore finds one, else CPU", choices=("auto", "ascend", "cpu"))
    mode: str = key("graph", "compiled steps, or PyNative for debugging", choices=("graph", "pynative"))
    precision: str = key(
        "fp32", "compute type of matmuls; norms, softmax, routers and loss stay fp32", choices=("fp32", "fp16", "bf16")
    )
    join_timeout: float = key(60.0, "seconds in which all ranks must have joined", above=0.0)
    collective_timeout: float = key(120.0, "seconds a collective may wait for its peers", above=0.0)
    loss_scale: LossScaleConfig = key(LossScaleConfig, "dynamic loss scale (precision fp16)")
    jit_level: Optional[str] = key(
        None,
        "how far Ascend's compiler goes: O0 kernel by kernel, O1 fuses them, O2 whole graphs to the "
        "device; null: MindSpore's default",
        choices=("O0", "O1", "O2"),
    )
    deterministic: bool = key(
        False,
        "on Ascend, the same bits from the same input (mindspore.set_deterministic; sets HCCL_DETERMINISTIC, "
        "which may be strict in the environment)",
    )
    hccl: HcclConfig = key(HcclConfig, "buffers and deadlines of HCCL")
    memory: DeviceMemoryConfig = key(DeviceMemoryConfig, "memory of an Ascend device")
    fused: FusedConfig = key(FusedConfig, "fused kernels of Ascend")


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
