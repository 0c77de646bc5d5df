"""`pangu-sigma ckpt extract`: a model of one domain, cut out of one of many ("loss-free expert pruning" of
PanGu-Sigma).

A token of the domain is served by the experts of the domain's group and by the domain's slot of the word table, and by
nothing that belongs to others alone. What is kept, the shared layers among it, is copied as it is; experts are numbered
from 0 anew.
"""

import hashlib
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import printable, whole_number
from locmoe_ops.routers.specs.c2r import trained
from locmoe_ops.shard_spec import ShardSpec
from locmoe_ops.topology import Topology
from pangu_sigma.checkpoint.format import CheckpointHeader, DataState, TensorEntry
from pangu_sigma.checkpoint.names import expert_name, is_training_state, split_name, without_moment
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.shards import PlannedTensor
from pangu_sigma.checkpoint.surgery.rewrite import check_target, newest, without_training_state, write_checkpoint
from pangu_sigma.config.derived import experts_per_group, pin_routers, resolve_layout
from pangu_sigma.config.load import save_config, to_dict
from pangu_sigma.config.schema import Config, LayerRouterConfig, LocalityBiasConfig, ParallelConfig, RouterConfig
from pangu_sigma.config.schema_run import CheckpointConfig, ClusterConfig, PrepareConfig
from pangu_sigma.data.corpus import RecordKeys, read_documents
from pangu_sigma.data.domains import DOMAIN_NAMES, is_domain_name, resolve_domain_groups
from pangu_sigma.data.jsonl import check_text
from pangu_sigma.data.manifest import find_tokenizer, tokenizer_among
from pangu_sigma.data.pieces import file_name_of
from pangu_sigma.data.sources import SourceCount
from pangu_sigma.runtime.messages import log
from pangu_sigma.runtime.text_table import wrapped

# Parameters of routers, by the end of their names, and the axis along which groups lie: all rows of one group are
# neighbours.
_BY_GROUP = re.compile(
    r"\.routing\.router\.(?:table|partners|gate\.(?:weight|codes)"
    r"|preference\.(?:terms\.\d+\.)?balance_(?:bias|integral|error)|centre\.value_mean)$"
)


@dataclass(frozen=True)
class Domain:
    """The domain that is kept.

    Attributes:
        number, name: among those of the data.
        group: its expert group.
        domains, groups: how many there are.
        experts: of a group.
    """

    number: int
    name: str
    group: int
    domains: int
    groups: int
    experts: int

    @property
    def first_expert(self) -> int:
        """Global id of the group's first expert."""
        return self.group * self.experts


def extract(
    source: str,
    target: str,
    domain: str,
    shards: int = 1,
    keep_optimizer: bool = False,
    tokenizer: Optional[str] = None,
) -> None:
    """Writes the checkpoint folder `target` of the domain's model, with its `config.yaml` and, where it can be found,
    the tokenizer.

    Args:
        source: the checkpoint, or a run, whose newest is taken.
        target: the new folder.
        domain: name or number.
        shards: number of shard files.
        keep_optimizer: keep what training needs, so that a run can resume.
        tokenizer: its file; None: the one that the checkpoint carries, or else that of the prepared data that the model
            was trained on, if that is still there.

    Memory: the word table of all domains, which is read whole.

    Raises InputError: no checkpoint, a damaged one, no such domain, another tokenizer, a target that is there already.
    """
    check_target(Path(target))
    check_text(target, f"{printable(target)}: the name, which goes into the new folder's config.yaml,")
    with CheckpointReader.open(newest(source)) as reader:
        kept = find_domain(reader, domain)
        vocabulary = _tokenizer(reader, tokenizer)
        files = {} if vocabulary is None else {file_name_of(vocabulary): vocabulary}
        config = config_of_domain(reader.config(), kept, target, next(iter(files), None))
        tensors = [
            tensor
            for name, entry in reader.manifest.tensors.items()
            for tensor in (_planned(reader, name, entry, kept, keep_optimizer),)
            if tensor is not None
        ]

        def add_files(folder: Path) -> None:
            save_config(config, folder / "config.yaml")

        write_checkpoint(Path(target), _header(reader, kept, config, keep_optimizer), tensors, shards, add_files, files)
        _report(reader, kept, target, tensors, vocabulary is not None)


def find_domain(reader: CheckpointReader, given: str) -> Domain:
    """Raises InputError where there is no domain of that name or number, or where its name, a part of file names, is
    not as `prepare` has them.
    """
    names, config = reader.header.data.domains, reader.config()
    number = names.index(given) if given in names else whole_number(given)
    if number is None or number >= len(names):
        raise InputError(
            f"--domain {given}: expected one of {', '.join(names)}, or a number from 0 to {len(names) - 1}"
        )
    if not is_domain_name(names[number]):
        raise InputError(
            f"{reader.folder}: domain {number} has the name {names[number][:80]!r}; expected {DOMAIN_NAMES}"
        )
    moe = config.moe
    groups = resolve_domain_groups(moe.domain_groups, len(names), moe.num_groups)
    return Domain(number, names[number], groups[number], len(names), moe.num_groups, experts_per_group(config))


def config_of_domain(config: Config, domain: Domain, target: str, tokenizer: Optional[str]) -> Config:
    """The configuration of the model that is left: one domain, one group, one process unless told otherwise, all
    experts at home.

    Args:
        config: of the model that is cut.
        domain: what is kept.
        target: the checkpoint folder of the new model.
        tokenizer: name of the tokenizer's file there; None: there is none.
    """
    config = pin_routers(config, resolve_layout(config, Topology(1, 1)))  # the checkpoint names the layout
    local_term = LocalityBiasConfig()  # on one node every expert is local, and a preference for local ones is none
    sources = {name: path for name, path in config.data.prepare.sources.items() if name == domain.name}
    prepare = replace(
        config.data.prepare,
        sources=sources,
        tokenizer=config.data.prepare.tokenizer if tokenizer is None else str(Path(target) / tokenizer),
        clusters=ClusterConfig(),  # there is one node, on which rows are shuffled
    )
    return replace(
        config,
        moe=replace(
            config.moe,
            num_experts=domain.experts,
            num_groups=1,
            domain_groups=None,
            logical_topology=None,
            # On one node the locality loss is 0, too. What follows from a file is in the checkpoint; a file is of
            # all groups.
            router=replace(config.moe.router, locality_bias=local_term, **_without_files(config.moe.router)),
            routers=tuple(replace(entry, **_without_files(entry)) for entry in config.moe.routers),
            dispatch=replace(config.moe.dispatch, group_wise=False),
        ),
        parallel=ParallelConfig(),
        data=replace(
            config.data,
            path=f"{config.data.path}-{domain.name}",
            placement="shuffled",
            mixing="balanced" if config.data.weights is not None else config.data.mixing,  # there is nothing to weigh
            weights=None,
            prepare=_without_foreign_keys(prepare, domain.name),
        ),
        train=replace(config.train, output_dir=f"{config.train.output_dir}-{domain.name}"),
        checkpoint=CheckpointConfig(
            config.checkpoint.interval,
            config.checkpoint.keep_last,
            config.checkpoint.keep_every,
            config.checkpoint.asynchronous,
            initial=target,
        ),
    )


def _without_foreign_keys(prepare: PrepareConfig, domain: str) -> PrepareConfig:
    """Fields of records that only other domains' sources have get their default names: `prepare` refuses a name that
    nothing is read by. A source that cannot be read, as it is not on this machine, is no reason to change them.
    """
    keys, default = RecordKeys(prepare.text_key, prepare.domain_key), RecordKeys()
    if keys == default or domain not in prepare.sources:
        return prepare
    count = SourceCount()
    try:
        for _ in read_documents(domain, prepare.sources[domain], prepare.max_bytes_per_domain, count=count, keys=keys):
            pass
    except InputError:
        return prepare
    return replace(
        prepare,
        text_key=keys.text if count.records else default.text,
        domain_key=keys.domain if count.labelled_records else default.domain,
    )


def _without_files(router: Union[RouterConfig, LayerRouterConfig]) -> Dict[str, Any]:
    """The sections of a `router`, of those that it has, which may name a file: without it."""
    found: Dict[str, Any] = {}
    if router.hash is not None:
        found["hash"] = replace(router.hash, map=None)
    if router.c2r is not None:
        found["c2r"] = trained(router.c2r)
    return found


def _header(reader: CheckpointReader, domain: Domain, config: Config, keep_optimizer: bool) -> CheckpointHeader:
    old = reader.header
    header = old if keep_optimizer else without_training_state(old)
    sampler = {**header.sampler, "prepared data": None} if header.sampler else {}
    scalars = {name: value for name, value in header.scalars.items() if not name.endswith(".local_strength")}
    data = DataState(old.data.tokenizer_sha256, old.data.vocab_size, (domain.name,))
    return replace(
        header,
        config=to_dict(config),
        data=data,
        sampler=sampler,
        scalars=scalars,
        origin=(*old.origin, f"domain {domain.name} of {reader.folder}, step {old.step}"),
    )


def _planned(
    reader: CheckpointReader, name: str, entry: TensorEntry, domain: Domain, keep_optimizer: bool
) -> Optional[PlannedTensor]:
    """What becomes of a tensor; None: it is left out."""
    if is_training_state(name) and (not keep_optimizer or name.startswith("capacity.")):
        return None
    moment, weight = without_moment(name)
    parameter, expert = split_name(weight)
    if expert is not None:
        if expert // domain.experts != domain.group:
            return None
        return PlannedTensor(
            moment + expert_name(parameter, expert - domain.first_expert),
            entry.shape,
            entry.dtype,
            partial(reader.read, name),
        )
    found = _rows(reader, weight, domain)
    if found is None:
        return PlannedTensor(name, entry.shape, entry.dtype, partial(reader.read, name))
    new_name, index, parts = found
    shape = (entry.shape[0] // parts, *entry.shape[1:])
    return PlannedTensor(moment + new_name, shape, entry.dtype, partial(reader.read, name, ShardSpec(0, index, parts)))


def _rows(reader: CheckpointReader, weight: str, domain: Domain) -> Optional[Tuple[str, int, int]]:
    """Which of equal stretches of its rows a parameter keeps: the new name, the stretch and their number; None: all
    rows.

    Raises InputError for a router's parameter that is not known here: it might belong to other groups.
    """
    if weight == "embedding.word" and reader.config().model.domain_embeddings:
        return weight, domain.number, domain.domains
    if _BY_GROUP.search(weight):
        # The bias is alone where there is no local term with it.
        return (
            re.sub(r"preference\.terms\.\d+\.balance_(\w+)$", r"preference.balance_\1", weight),
            domain.group,
            domain.groups,
        )
    if weight.endswith(".routing.router.context_weight"):  # a number for all groups
        return None
    if ".routing." in weight:
        raise InputError(
            f"tensor {weight}: not known which of it belongs to domain {domain.name}; expected a router of this release"
        )
    return None


def _tokenizer(reader: CheckpointReader, given: Optional[str]) -> Optional[bytes]:
    """The tokenizer's file, None where there is none to be found. Raises InputError where the one given is another;
    DamagedCheckpoint.
    """
    expected = reader.header.data.tokenizer_sha256
    carried = tokenizer_among(reader.manifest.files)
    if given is None and carried is not None:
        return reader.read_file(carried)
    if given is not None:
        if not Path(given).is_file():
            raise InputError(f"--tokenizer {given}: no such file")
        path: Optional[Path] = Path(given)
    else:
        path = find_tokenizer(reader.folder) or find_tokenizer(Path(reader.config().data.path))
    if path is None:
        return None
    content = path.read_bytes()
    same = hashlib.sha256(content).hexdigest() == expected
    if not same and given is not None:
        raise InputError(
            f"--tokenizer {given}: not the file that the model was trained with (sha256 {str(expected)[:12]}...)"
        )
    return content if same else None


def _report(
    reader: CheckpointReader, domain: Domain, target: str, tensors: List[PlannedTensor], has_tokenizer: bool
) -> None:
    def elements(shapes: Dict[str, Tuple[int, ...]]) -> int:
        return sum(int(np.prod(shape)) for name, shape in shapes.items() if not is_training_state(name))

    before = elements({name: entry.shape for name, entry in reader.manifest.tensors.items()})
    after = elements({tensor.key: tensor.shape for tensor in tensors})
    said = (
        f"{target}: domain {domain.name} (group {domain.group}, {domain.experts} experts a layer); {after:,} of "
        f"{before:,} parameters"
    )
    print("\n".join(wrapped(said, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)))
    if not has_tokenizer:
        log.warning(
            "the tokenizer was not found (data.path %s); --tokenizer FILE puts it beside the model",
            reader.config().data.path,
        )
