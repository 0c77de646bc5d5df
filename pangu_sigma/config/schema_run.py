"""The keys of how a run is fed, trained, kept and executed; see `pangu_sigma.config.schema`, which has the others."""

from dataclasses import dataclass
from typing import Dict, Optional, Tuple, Union

from locmoe_ops.keys import key
from pangu_sigma.config.chips import CHIPS


@dataclass(frozen=True)
class ClusterConfig:
    """Clusters of documents by the token ids in them, for data.placement clustered. Needs scikit-learn."""

    count: int = key(0, "clusters, of equal size as far as whole documents allow; 0: none", minimum=0)
    within: str = key(
        "corpus",
        "documents of all domains clustered together, which needs no domains to tell text apart; or each domain's by "
        "themselves, so that a node reads its part of every domain",
        choices=("corpus", "domain"),
    )
    dimensions: int = key(
        64, "features of a document: tf-idf of its ids, reduced by truncated SVD", minimum=2, maximum=4096
    )
    seed: int = key(1, "seed of the clustering", minimum=0, maximum=2**32 - 1)


@dataclass(frozen=True)
class PrepareConfig:
    sources: Dict[str, str] = key(
        dict,
        "domain name -> folder of text files, or one file; a JSONL file has a document on each line, a Parquet file "
        "(needs pyarrow) one in each row, in the field text_key, and perhaps its domain in domain_key. "
        "docs/tutorial.md says which files of a folder are read",
    )
    text_key: str = key("text", "field of a JSONL record, or column of a Parquet file, that holds a document's text")
    domain_key: str = key(
        "domain",
        "field or column that names a document's domain: a source takes those of its own domain, and those that name "
        "none",
    )
    vocab_size: int = key(8000, "pieces of the tokenizer to train", minimum=300)
    tokenizer: Optional[str] = key(
        None,
        "existing tokenizer to use instead of training one: a SentencePiece model that has <|endoftext|> and a tag for "
        "each domain, as prepare trains it; or Hugging Face's tokenizer.json (needs tokenizers), byte-level or with "
        "byte fallback, to which those that are missing are added",
    )
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
    clusters: ClusterConfig = key(ClusterConfig, "clusters of documents, which data.placement can place on nodes")


@dataclass(frozen=True)
class DataConfig:
    path: str = key("data", "folder written by `pangu-sigma prepare`")
    placement: str = key(
        "shuffled",
        "which rows a rank sees: any; those of the domains placed on its node (domain_by_node), whatever groups the "
        "experts are in; those of clusters of documents placed on its node (clustered, of data prepared with "
        "data.prepare.clusters); domains placed first, and on the nodes of each its clusters; or (known_routes, ours) "
        "each global batch's rows, equally many to a node, so that most tokens are at home, with routers that "
        "follow token ids (hash, locmoe with gate_input code). Where moe.expert_placement "
        "node_grouped puts a domain's group on the domain's nodes, ranks of other domains get no slots: those that "
        "share a domain exchange by themselves",
        choices=("shuffled", "domain_by_node", "clustered", "domain_cluster_by_node", "known_routes"),
    )
    mixing: str = key(
        "balanced",
        "domains in equal shares within every rank's rows, in proportion to their size, or in proportion to "
        "data.weights. Validation takes equally many rows of each domain in any case",
        choices=("balanced", "proportional", "weighted"),
    )
    weights: Optional[Dict[str, float]] = key(
        None,
        "domain name -> its weight in what training reads, for data.mixing weighted: {en: 1, zh: 3} reads three rows "
        "of zh for one of en, however much text there is of each; a domain that runs out is read again",
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
    expert_state: str = key(
        "device",
        "where experts' optimizer state is and whom a step updates: device (all); host_dense (all, the state in "
        "host memory); host_lazy (likewise, but idle experts stay as they are)",
        choices=("device", "host_dense", "host_lazy"),
    )
    zero: str = key(
        "none",
        "optimizer state whole on every rank, or (data_parallel) shared out over the ranks that hold the same "
        "parameters, ZeRO-1; what experts keep on the host is not shared out",
        choices=("none", "data_parallel"),
    )
    flat: Optional[bool] = key(
        None,
        "biases and norms put together in vectors, which are measured, clipped and updated as one: fewer kernels, the "
        "same update. null: on Ascend. Not where zero gives each rank stretches of all parameters, which are vectors",
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
    global_batch_size: int = key(8, "sequences an optimizer step, over all ranks", minimum=1)
    micro_batch_size: Optional[int] = key(
        None, "sequences a rank processes at once; null: global_batch_size / ranks", minimum=1
    )
    recompute: Union[str, int] = key(
        "none",
        "what the backward pass computes anew instead of keeping it from the forward pass: nothing; queries, keys, "
        "values and scores of every layer (attention); all of the layers with experts (sparse); of all layers; or of "
        "so many of the lowest layers. What a collective brought is kept: nothing is sent twice",
        choices=("none", "attention", "sparse", "all"),
        minimum=1,
        hint="or a number of layers",
    )
    output_dir: str = key("runs/default", "run directory")
    log_interval: int = key(10, "steps between console lines, and between reports of the slowest rank", minimum=1)
    read_results: str = key(
        "each_step",
        "when the host reads a step's numbers from the device: before it launches the next step; when it has launched "
        "that, so that the device need not wait for the host; or those of log_interval steps together. All are read "
        "before a validation, a checkpoint or a change of a router's scheduled value, and around profiled steps. Read "
        "later, only times are others: means over what is read together (Ascend). Divergence, rows beyond a limit and "
        "requests to stop are noticed when steps are read, under their own numbers",
        choices=("each_step", "next_step", "log_interval"),
    )
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
        "after which the run ends with status 1; 0: it continues regardless",
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
        "newest checkpoints kept (two at least while a run continues: only the next step tells "
        "whether the newest is any good)",
        minimum=1,
    )
    keep_every: int = key(0, "checkpoints whose step is a multiple of this are kept for good; 0: none", minimum=0)
    asynchronous: bool = key(
        True,
        "write while training continues, which waits for a copy of the state only; false: training waits for the disk",
    )
    resume: Optional[str] = key(
        None, "null: start anew; auto: newest whole checkpoint of output_dir if any; or a checkpoint folder"
    )
    initial: Optional[str] = key(
        None,
        "checkpoint folder whose weights a new run begins with, as `ckpt inherit` and `ckpt extract` "
        "write them (resume auto: unless there is a checkpoint to resume from)",
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
        "HCCL_EXEC_TIMEOUT: seconds a collective may wait for its peers; 0: for ever (910A: at most 17340, not 0)",
        minimum=0,
        maximum=2147483647,
    )
    unchecked_all_to_all: bool = key(
        False, "all-to-all also in groups that HCCL's documentation rules out (910A), where your CANN knows better"
    )


@dataclass(frozen=True)
class DeviceMemoryConfig:
    """MindSpore's memory pool on Ascend (mindspore.runtime.set_memory; not tried there); null: its default."""

    initial_gb: Optional[float] = key(None, "size of the pool at first", minimum=0.1, maximum=1024.0)
    increase_gb: Optional[float] = key(None, "what the pool grows by", minimum=0.1, maximum=1024.0)
    maximum_gb: Optional[float] = key(None, "what the pool never exceeds", minimum=0.1, maximum=1024.0)


@dataclass(frozen=True)
class FusedConfig:
    """Ascend's fused kernels in place of plain MindSpore. On Ascend only, where they were compiled but never run."""

    attention: bool = key(
        False,
        "FlashAttentionScore for scores, softmax and mixing (fp16 or bf16, no attention dropout, head sizes of "
        "multiples of 16)",
    )
    experts: bool = key(False, "GroupedMatmul for the two products of all local experts")
    permute: bool = key(
        False, "MoeTokenPermute and MoeTokenUnpermute for sorting tokens by expert and back (ragged dispatch)"
    )
    accumulate: bool = key(
        False,
        "gradients are added to what earlier micro-batches left without a pass of their own: of weights of up to 10 "
        "million numbers a rank by their products (InplaceMatmulAdd, by MindSpore's pass matmul_assignadd_fusion, with "
        "CANN's ATB installed), others in half precision by InplaceAddExt (several micro-batches, fp16 or bf16)",
    )


@dataclass(frozen=True)
class RuntimeConfig:
    backend: str = key(
        "auto",
        "collectives: MindSpore primitives (hccl) or the CPU mesh (tcp); auto: by device",
        choices=("auto", "hccl", "tcp"),
    )
    device: str = key("auto", "auto: Ascend where MindSpore finds one, else CPU", choices=("auto", "ascend", "cpu"))
    chip: str = key(
        "auto",
        "Ascend chip, whose rules hold (pangu_sigma/config/chips.py); auto: as MindSpore finds it on a device; for "
        "plan and audit as the hardware file says",
        choices=("auto", *CHIPS),
    )
    mode: str = key(
        "graph",
        "compiled steps, or each operator as it is called (PyNative): the same numbers to rounding, nothing to "
        "compile, slower steps (docs/versions.md)",
        choices=("graph", "pynative"),
    )
    precision: str = key(
        "fp32", "compute type of matmuls; norms, softmax, routers and loss stay fp32", choices=("fp32", "fp16", "bf16")
    )
    join_timeout: float = key(60.0, "seconds in which all ranks must have joined", above=0.0)
    collective_timeout: float = key(120.0, "seconds a collective may wait for its peers", above=0.0)
    loss_scale: LossScaleConfig = key(LossScaleConfig, "dynamic loss scale (precision fp16)")
    jit_level: Optional[str] = key(
        None,
        "how far Ascend's compiler goes: O0 kernel by kernel, O1 fuses them (O2, whole graphs to the device, is "
        "deprecated by MindSpore); null: O0",
        choices=("O0", "O1", "O2"),
    )
    deterministic: bool = key(
        False,
        "on Ascend, the same bits from the same input (mindspore.set_deterministic; sets HCCL_DETERMINISTIC, "
        "which may be strict in the environment)",
    )
    compile_cache: Optional[str] = key(
        "auto",
        "folder in which compiled graphs are kept for later runs, of any configuration (docs/reliability.md, Compile "
        "cache); auto: PANGU_SIGMA_COMPILE_CACHE, else pangu_sigma/graphs in the user's folder of caches, on CPU in "
        "graph mode; none or null: every run compiles its own",
    )
    lazy_inline: bool = key(
        False,
        "in training, layers that differ by nothing but their parameters are parsed and differentiated once, which "
        "shortens the compilation of deep networks",
    )
    hccl: HcclConfig = key(HcclConfig, "buffers and deadlines of HCCL")
    memory: DeviceMemoryConfig = key(DeviceMemoryConfig, "memory of an Ascend device")
    fused: FusedConfig = key(FusedConfig, "fused kernels of Ascend")
