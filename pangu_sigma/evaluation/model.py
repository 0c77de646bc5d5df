"""A checkpoint, opened for evaluation on one process: network, tokenizer, prepared data."""

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.routers.selection_bias import switch_off_locality_rules
from locmoe_ops.tensor_parallel import TensorGroup
from locmoe_ops.topology import ExpertPlacement, Topology, nodes_of_experts
from pangu_sigma.checkpoint.format import NAME as MANIFEST
from pangu_sigma.checkpoint.format import DataState
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.resume import CheckpointLoader, ResumeSource, find_source
from pangu_sigma.checkpoint.state import RANKS, StateEntry, parameter_entries
from pangu_sigma.config.derived import (
    job_topology,
    micro_batch_sequences,
    pin_routers,
    resolve_layout,
)
from pangu_sigma.config.schema import CapacityConfig, Config, DispatchConfig, LogicalTopologyConfig
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.data.vocabulary import Vocabulary, vocabulary
from pangu_sigma.errors import DamagedCheckpoint
from pangu_sigma.evaluation.ranks import TrainedRanks
from pangu_sigma.evaluation.scoring import Scorer
from pangu_sigma.inference.load import tokenizer_file
from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.model.sparse import SparseContext
from pangu_sigma.runtime.runtime import Runtime, start_runtime

MOST_ROWS = 8  # of a batch, where the configuration does not say how many


@dataclass(frozen=True)
class EvaluatedModel:
    """A network with the weights of a checkpoint, and what is needed to ask it.

    Attributes:
        config: as evaluated.
        data: prepared rows; None where they are not asked for.
        tokenizer, domains: the checkpoint's own.
        checkpoint, step: what the weights are.
        identity: hash of the checkpoint's manifest, and so of its tensors' checksums.
        network, scorer, runtime: in evaluation mode, on this process.
        data_ranks: among how many data-parallel ranks the rows are shared out.
        ranks: as trained: plays each of them.
        expert_nodes: where routes are traced, the node of each expert in the cluster of the configuration.
    """

    config: Config
    runtime: Runtime
    data: Optional[PreparedData]
    tokenizer: Tokenizer
    domains: Tuple[str, ...]
    checkpoint: Path
    step: int
    identity: str
    network: PanGuSigma
    scorer: Scorer
    data_ranks: int = 1
    ranks: Optional[TrainedRanks] = None
    expert_nodes: Tuple[int, ...] = ()

    def domain(self, name: str, asked: str) -> int:
        """Number of a domain. Raises InputError, which begins with `asked`."""
        if name not in self.domains:
            raise InputError(f"{asked}: found {name}, expected one of the model's domains: {', '.join(self.domains)}")
        return self.domains.index(name)

    def tag(self, domain: int) -> int:
        """Id that opens documents of a domain."""
        return self.tokenizer.domain_tags[self.domains[domain]]


class _Weights:
    """What of a network a checkpoint fills in, as `CheckpointLoader` asks for it."""

    def __init__(self, network: PanGuSigma) -> None:
        self._network = network

    def state(self) -> List[StateEntry]:
        return parameter_entries(self._network.get_parameters())


def on_one_process(config: Config) -> Config:
    """The configuration of a job of any size, for one process: the checkpoint says which cluster homes and locality
    refer to.
    """
    parallel = replace(config.parallel, expert=1, tensor=1, ranks_per_node=None)
    resume = config.checkpoint.resume or "auto"  # who asks for a run's model means its newest
    checkpoint = replace(config.checkpoint, resume=resume, initial=None)  # `initial` is where that run once began
    return replace(config, parallel=parallel, checkpoint=checkpoint)


def without_drops(config: Config) -> Config:
    """With slots for all tokens at every expert, on a cluster of one rank. There every expert is local, so that local
    terms and limits on remote choices change nothing, and what a token gives does not depend on the others of its
    batch.
    """
    moe = config.moe
    dispatch = replace(DispatchConfig(), drop_priority=moe.dispatch.drop_priority)
    capacity = replace(CapacityConfig(), evaluation_factor=moe.num_experts / moe.router.top_k)
    return replace(
        config,
        moe=replace(
            moe,
            logical_topology=LogicalTopologyConfig(),
            dispatch=dispatch,
            capacity=capacity,
            evaluation_rules="trained",
        ),
    )


@contextmanager
def open_model(
    config: Config, as_trained: bool, prepared_rows: bool = True, traces: bool = False
) -> Iterator[EvaluatedModel]:
    """The model of the checkpoint that `checkpoint.resume` names.

    Args:
        config: as `on_one_process` gives it.
        as_trained: as validation during training: slots, homes and local terms as configured. False: `without_drops`.
        prepared_rows: whether validation rows will be asked for. Without them no prepared data need be there: what ids
            mean is in the checkpoint.
        traces: whether the scores of batches are to say what the routers chose.

    Raises:
        InputError: no checkpoint is found, or it does not fit the configuration or the data.
    """
    data = PreparedData.open(config.data.path) if prepared_rows else None
    source = find_source(config, data, for_training=False)
    if not source.candidates:
        raise InputError(
            f"train.output_dir: {config.train.output_dir} holds no checkpoint; expected the folder of a run that has "
            "written one, or checkpoint.resume=FOLDER"
        )
    trained = _trained(config, source)
    placed, topology = trained.cluster(config)
    expert_nodes = _expert_nodes(placed, topology) if traces else ()
    if not as_trained:
        placed, topology = without_drops(pin_routers(config, resolve_layout(placed, topology))), Topology(1, 1)
    config = placed
    rows = micro_batch_sequences(config, topology.data) if as_trained else _rows(config)
    config = replace(config, train=replace(config.train, micro_batch_size=rows))
    words = trained.words(config) if data is None else vocabulary(config, data)
    with start_runtime(config) as runtime:
        # Network and scorer alone: evaluation needs no optimizer, whose state is twice as large as the weights.
        context = _context(config, runtime, words)
        network = PanGuSigma(context)
        scorer = Scorer(network, context.shape, slots_for_all=not as_trained, traces=traces)
        start = CheckpointLoader(config, runtime, data, _Weights(network), for_training=False).load(source)
        if config.moe.evaluation_rules == "none":
            switch_off_locality_rules(network)
        assert start.checkpoint is not None  # there are candidates, and none of them whole is an error
        identity = hashlib.sha256((start.checkpoint / MANIFEST).read_bytes()).hexdigest()
        ranks = TrainedRanks(network, _context(config, runtime, words), topology) if as_trained else None
        yield EvaluatedModel(
            config=config,
            runtime=runtime,
            data=data,
            tokenizer=trained.tokenizer,
            domains=trained.data.domains,
            checkpoint=start.checkpoint,
            step=start.step,
            identity=identity,
            network=network,
            scorer=scorer,
            data_ranks=topology.data,
            ranks=ranks,
            expert_nodes=expert_nodes,
        )


def _expert_nodes(config: Config, topology: Topology) -> Tuple[int, ...]:
    """The node of each expert in the cluster of `config`, whose job was of `topology`."""
    moe, layout = config.moe, resolve_layout(config, topology)
    placement = ExpertPlacement(moe.num_experts, moe.num_groups, layout.expert, moe.expert_placement)
    return tuple(map(int, nodes_of_experts(layout, placement).reshape(-1)))  # (E,) <- (G, n)


def _context(config: Config, runtime: Runtime, words: Vocabulary) -> SparseContext:
    shape = model_dims(
        config, micro_batch_sequences(config, 1), words.vocab_size, words.domains, TensorGroup(runtime.collectives)
    )
    return SparseContext(config, shape, runtime.collectives, words.counts, reads_files=False)


def _rows(config: Config) -> int:
    """Rows of a batch where nothing is dropped, so that results do not depend on it."""
    rows = config.train.global_batch_size
    if config.train.micro_batch_size is not None:
        return micro_batch_sequences(config, 1)
    return max(size for size in range(1, MOST_ROWS + 1) if rows % size == 0)


class _Trained(NamedTuple):
    """What the newest readable checkpoint says of its training: the meaning of ids, the configuration, the ranks that
    rows were shared out among (None: an older version did not say).
    """

    data: DataState
    tokenizer: Tokenizer
    config: Config
    ranks: Optional[int]

    def words(self, config: Config) -> Vocabulary:
        """Sizes of the tables. Hash maps and codes, which may follow from counts of tokens, come with the weights."""
        rows = self.data.vocab_size
        return Vocabulary(rows, len(self.data.domains), np.ones((config.moe.num_groups, rows), np.int64))

    def cluster(self, config: Config) -> Tuple[Config, Topology]:
        """`config` with the layout that the checkpoint names, if it names none itself; and the job that wrote the
        checkpoint.
        """
        layout, ranks = config.moe.logical_topology or self.config.moe.logical_topology, self.ranks
        if ranks is None:  # a layout that nobody gave was that of the job
            ranks = layout.world_size if config.moe.logical_topology is None and layout is not None else 1
        parallel = self.config.parallel
        world = ranks * parallel.tensor
        if world % (parallel.expert * parallel.tensor):  # an older version, and one process with a layout of its own
            topology = Topology(ranks, ranks)
        else:
            topology = job_topology(self.config, world)
        return replace(config, moe=replace(config.moe, logical_topology=layout)), topology


def _trained(config: Config, source: ResumeSource) -> _Trained:
    """Raises InputError where no checkpoint can be read, or none of its tokenizer can be found."""
    for path in reversed(source.candidates):
        try:
            with CheckpointReader.open(path) as reader:
                tokenizer = Tokenizer.load(str(tokenizer_file(reader, config, None)))
                ranks = reader.header.sampler.get(RANKS)
                return _Trained(
                    reader.header.data, tokenizer, reader.config(), ranks if isinstance(ranks, int) else None
                )
        except DamagedCheckpoint:
            if not source.may_fall_back:
                raise
    raise InputError(
        f"{source.candidates[-1].parent}: none of the {len(source.candidates)} checkpoints there is whole; expected one"
    )
