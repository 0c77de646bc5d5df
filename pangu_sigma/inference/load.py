"""A checkpoint's network, ready to be asked; nothing of training comes along."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.errors import InputError
from locmoe_ops.json_file import whole_number
from locmoe_ops.router_registry import router_spec
from locmoe_ops.routers.selection_bias import set_locality_strength
from locmoe_ops.routers.specs.c2r import trained
from locmoe_ops.topology import Topology
from pangu_sigma.checkpoint.folders import finished, resolve
from pangu_sigma.checkpoint.header import check_same_model, differences
from pangu_sigma.checkpoint.locate import FILE, MODEL, StrPath, checkpoints_named, locate, read_configuration
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.state import parameter_entries, read_values, set_values
from pangu_sigma.config.check_routers import routers_in_use
from pangu_sigma.config.schema import (
    CapacityConfig,
    Config,
    DispatchConfig,
    LayerRouterConfig,
    ParallelConfig,
    RouterConfig,
)
from pangu_sigma.config.schema_run import CheckpointConfig
from pangu_sigma.config.validate import validate
from pangu_sigma.data.domains import BY_DOMAIN
from pangu_sigma.data.manifest import TOKENIZERS, describe_file, find_tokenizer, tokenizer_among
from pangu_sigma.data.placement import make_zones
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.errors import DamagedCheckpoint
from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.model.sparse import SparseContext
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.runtime.launch import read_launch
from pangu_sigma.runtime.messages import log
from pangu_sigma.runtime.runtime import Runtime, start_runtime

ALONE = Topology(1, 1)


@dataclass(frozen=True)
class TextCodec:
    """What ids mean to a model: texts to ids and back, names of domains to numbers, and the limits of both.

    Attributes:
        tokenizer, tokenizer_path: the tokenizer and its file.
        domains: names by number.
        vocab_size: rows of the word table, of which the tokenizer's words are the first.
        sequence_length: most tokens of a row.
        resets: whether a document's positions begin anew at its start, and it sees nothing before
            (`data.reset_at_document_end`).
    """

    tokenizer: Tokenizer
    tokenizer_path: str
    domains: Tuple[str, ...]
    vocab_size: int
    sequence_length: int
    resets: bool

    def domain(self, given: Union[str, int]) -> int:
        """Number of a domain. Raises InputError where there is none of that name or number."""
        if given in self.domains:
            return self.domains.index(str(given))
        number = whole_number(str(given))
        if number is None or number >= len(self.domains):
            raise InputError(
                f"domain {given}: expected one of {', '.join(self.domains)}, or a number from 0 to "
                f"{len(self.domains) - 1}"
            )
        return number

    def encode(self, text: str, domain: int) -> List[int]:
        """Ids of the beginning of a document, its domain's tag first, as in training."""
        return [self.tokenizer.domain_tags[self.domains[domain]], *self.tokenizer.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special ones stand for none."""
        return self.tokenizer.decode(ids)


@dataclass(frozen=True)
class Model:
    """A network with its weights, or on each rank its part.

    Attributes:
        network, context: the network, and what it was built from.
        codec: what its ids mean.
        homes: the rank of the trained cluster that each domain's rows belong to, for local terms.
        checkpoint, step: the folder that the weights are from, and its step.
        runtime: this rank's, which is left when the model is no longer asked.
    """

    network: PanGuSigma
    context: SparseContext
    codec: TextCodec
    homes: Tuple[int, ...]
    checkpoint: Path
    step: int
    runtime: Runtime


def load_model(
    source: Union[Config, StrPath],
    tokenizer: Union[str, Path, None] = None,
    local_term: bool = False,
    spread: bool = False,
) -> Model:
    """The newest whole checkpoint's model.

    Args:
        source: a configuration or its file (`checkpoint.resume` names the checkpoint; null or auto: the newest of
            `train.output_dir`, or, where there is none, `checkpoint.initial`), a run directory, or a checkpoint folder.
            The last two say themselves what their configuration is.
        tokenizer: its file; None: the one in the checkpoint, or else (of a checkpoint that holds none) in the folder of
            prepared data.
        local_term: let routers prefer experts near the home of a row's domain, as in training. Without it nobody has a
            home.
        spread: the process may be one of several that a launcher started; each takes an equal share of the experts.

    Raises InputError: no whole checkpoint, one that does not fit the configuration, no tokenizer, or another one than
    in training; several ranks, unless `spread`, or more than divide the experts; ranks that found different
    checkpoints. DamagedCheckpoint, of several ranks: the newest is damaged; none looks for an older one by itself.
    """
    ranks = read_launch().world_size
    if ranks > 1 and not spread:
        raise InputError(
            f"found a job of {ranks} ranks; expected one process, as only generation spreads experts over ranks"
        )
    if not isinstance(source, Config) and locate(source).kind == FILE:
        source = read_configuration(source, use=MODEL)
    candidates = resolve(checkpoint_of(source))
    for path in reversed(candidates):
        try:
            with CheckpointReader.open(path) as reader:
                return _read(
                    reader, source if isinstance(source, Config) else reader.config(), tokenizer, local_term, ranks
                )
        except DamagedCheckpoint as error:
            if len(candidates) == 1 or ranks > 1:  # each rank reads other files, and might end at another step
                raise
            log.warning("%s; trying the checkpoint before it", error)
    raise InputError(f"{candidates[-1].parent}: none of the {len(candidates)} checkpoints there is whole; expected one")


def _read(
    reader: CheckpointReader, config: Config, tokenizer: Union[str, Path, None], local_term: bool, ranks: int
) -> Model:
    check_same_model(reader, config)
    layout = config.moe.logical_topology or reader.config().moe.logical_topology
    config = inference_config(replace(config, moe=replace(config.moe, logical_topology=layout)), ranks)
    validate(config, ranks)
    codec = _codec(reader, config, tokenizer)
    runtime, step = start_runtime(config), reader.header.step
    if runtime.world_size > 1:  # another job may still write while ranks look for the newest checkpoint
        mean = HostSum(runtime.collectives, "inference/step").values(np.array([float(step)]))[0] / runtime.world_size
        if mean != step:
            raise InputError(
                f"{reader.folder}: step {step} is not what the other ranks read; expected one checkpoint, named by "
                "checkpoint.resume"
            )
    context = network_context(config, codec.vocab_size, len(codec.domains), runtime.collectives)
    network = PanGuSigma(context)
    runtime.check_groups()
    experts = context.slot_rules.placement.local_experts(runtime.topology.ep_index(runtime.rank))
    set_values(
        read_values(reader, parameter_entries(network.get_parameters()), experts, lambda: differences(reader, config))
    )
    network.set_train(False)
    if not local_term:
        set_locality_strength(network, 0.0)
    return Model(network, context, codec, domain_homes(context), reader.folder, step, runtime)


def network_context(
    config: Config, vocab_size: int, domains: int, collectives: Optional[Collectives] = None
) -> SparseContext:
    """What a network for one row at a time is built from. Hash maps and codes, which may follow from counts of tokens,
    come with the weights.

    Args:
        config: for answers, see `inference_config`.
        vocab_size, domains: of the word table.
        collectives: of the ranks that share the experts; None: of one process.
    """
    counts = np.ones((config.moe.num_groups, vocab_size), np.int64)
    collectives = collectives or create_collectives("local", ALONE, 0)
    dims = model_dims(config, 1, vocab_size, domains)
    return SparseContext(config, dims, collectives, counts, reads_files=False)


def inference_config(config: Config, ranks: int = 1) -> Config:
    """The configuration of the same network for answers, with experts spread over so many ranks.

    No dropout. Slots for all tokens with any expert, so that none is dropped. No cap on tokens that leave their node
    (faster_moe), since it compares the tokens of a batch with each other.

    Raises InputError for a router that must be given whole rows.
    """
    for where, used in routers_in_use(config).items():
        if router_spec(used.type).whole_rows:
            raise InputError(
                f"{where}.type is {used.type}, which routes whole rows of text alone, and decoding goes token by "
                "token; expected the router that the model was trained with"
            )
    slots = CapacityConfig(evaluation_factor=float(config.moe.num_experts))
    # Nothing is dropped, but etr asks for a priority of its own.
    dispatch = DispatchConfig(drop_priority=config.moe.dispatch.drop_priority)
    return replace(
        config,
        parallel=ParallelConfig(expert=ranks),
        checkpoint=CheckpointConfig(),
        model=replace(config.model, embedding_dropout=0.0, attention_dropout=0.0, hidden_dropout=0.0),
        moe=replace(
            config.moe,
            capacity=slots,
            dispatch=dispatch,
            router=replace(config.moe.router, **_for_answers(config.moe.router)),
            routers=tuple(replace(entry, **_for_answers(entry)) for entry in config.moe.routers),
            evaluation_rules="trained",
        ),
    )


def _for_answers(router: Union[RouterConfig, LayerRouterConfig]) -> Dict[str, Any]:
    """The sections of a `router`, of those that it has, which `inference_config` changes."""
    found: Dict[str, Any] = {}
    if router.faster_moe is not None:
        found["faster_moe"] = replace(router.faster_moe, max_remote_fraction=1.0)
    if router.c2r is not None:
        found["c2r"] = trained(router.c2r)  # whose table comes with the weights
    return found


def domain_homes(context: SparseContext) -> Tuple[int, ...]:
    """For each domain, the first rank of the layout that its rows may belong to."""
    placement, domains, per_node = context.config.data.placement, context.shape.domains, context.layout.ranks_per_node
    homes = [0] * domains
    for zone in make_zones(context.layout, placement, domains):
        for index, domain in enumerate(zone.domains):
            node = index * (len(zone.ranks) // per_node) // len(zone.domains) if placement in BY_DOMAIN else 0
            homes[domain] = zone.ranks[node * per_node]
    return tuple(homes)


def checkpoint_of(source: Union[Config, StrPath]) -> Path:
    """The checkpoint, or folder of checkpoints, that is meant; see `load_model`."""
    if not isinstance(source, Config):
        return Path(checkpoints_named(source))
    resume, run, initial = source.checkpoint.resume, Path(source.train.output_dir), source.checkpoint.initial
    if resume not in (None, "auto"):
        return Path(str(resume))
    return Path(initial) if initial is not None and not finished(run / "checkpoints") else run


def _codec(reader: CheckpointReader, config: Config, given: Union[str, Path, None]) -> TextCodec:
    data = reader.header.data
    path = tokenizer_file(reader, config, given)
    tokenizer = Tokenizer.load(str(path))
    missing = [name for name in data.domains if name not in tokenizer.domain_tags]
    if missing or tokenizer.vocab_size > data.vocab_size:
        raise InputError(
            f"tokenizer {path}: {tokenizer.vocab_size} pieces with tags for {', '.join(tokenizer.domains)}; expected "
            f"at most {data.vocab_size}, and a tag for each of {', '.join(data.domains)}"
        )
    return TextCodec(
        tokenizer,
        str(path),
        data.domains,
        data.vocab_size,
        config.model.sequence_length,
        config.data.reset_at_document_end,
    )


def tokenizer_file(reader: CheckpointReader, config: Config, given: Union[str, Path, None]) -> Path:
    """The tokenizer that a checkpoint was trained with.

    Args:
        reader: of the checkpoint. config: says where the prepared data are.
        given: the file that the user named; None: see `load_model`.

    Raises InputError where there is none, or another; DamagedCheckpoint where the checkpoint's own is not as it was
    written.
    """
    expected, carries = reader.header.data, tokenizer_among(reader.manifest.files)
    if given is None and carries is not None:
        reader.read_file(carries)
    prepared = Path(config.data.path)
    if given is not None:
        places, path = [Path(given)], Path(given) if Path(given).is_file() else None
    else:
        places = [reader.folder / TOKENIZERS[0], prepared / TOKENIZERS[0]]
        path = reader.folder / carries if carries else find_tokenizer(reader.folder) or find_tokenizer(prepared)
    if path is None:
        raise InputError(
            f"no tokenizer at {' or '.join(map(str, places))}; expected the file that the model was trained with "
            "(--tokenizer FILE, or data.path)"
        )
    if expected.tokenizer_sha256 not in (None, describe_file(path).sha256):
        remedy = (
            "expected none named, for the checkpoint holds it" if carries else "expected that file (--tokenizer FILE)"
        )
        raise InputError(
            f"tokenizer {path}: not the file that {reader.folder} was trained with (sha256 "
            f"{str(expected.tokenizer_sha256)[:12]}...); its ids mean other text; {remedy}"
        )
    return path
