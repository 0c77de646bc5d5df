"""A file of variants -> the list of runs of a comparison, in the order in which they are made.

    base: configs/quickstart.yaml             # what all variants share; paths are as seen from the working directory
    base_overrides: {train.steps: 400}
    variants:                                 # name: what makes it different
      switch: {moe.router.type: switch}
      locmoe: {moe.router.type: locmoe}
    baseline: switch                          # what ratios refer to; left out: the first variant
    seeds: [1, 2, 3]
    cluster: {nodes: 2, ranks_per_node: 2, rate: 200mbit, pin: true}
    warmup_steps_ignored: 10                  # first steps of each run that count for no time and no byte
    run_timeout: 3600                         # seconds
    phases:                                   # left out: each run gives both perplexity and time
      quality: {rate: null}
      time: {seeds: [1, 2, 3, 4], overrides: {train.steps: 60, train.eval_rows: 0}}

The link's rate does not change the mathematics: long runs for perplexity may go at full speed, and short ones, close to
each other, at the limited rate for time. A phase starts from `cluster.rate` and `seeds`.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import yaml

from locmoe_ops.declared import Declared
from locmoe_ops.dispatch.registry import dispatchers
from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import registered
from pangu_sigma.compare.values import as_rate, as_section, as_seeds, as_text, as_timeout, as_whole, one_of
from pangu_sigma.config.derived import layer_routers
from pangu_sigma.config.load import load_config, to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.config.strict_yaml import parse_yaml, read_text, shown
from pangu_sigma.config.validate import validate
from pangu_sigma.report.comparison import SINGLE_PHASE, ComparedRun, Comparison, SimulatedCluster

KEYS = (
    "base",
    "base_overrides",
    "variants",
    "baseline",
    "seeds",
    "cluster",
    "phases",
    "warmup_steps_ignored",
    "run_timeout",
)
CLUSTER_KEYS = ("nodes", "ranks_per_node", "rate", "pin")
PHASE_KEYS = ("overrides", "rate", "seeds")
PHASES = ("quality", "time")
# What the comparison sets itself for each run, and what would keep a run from ever being finished.
RESERVED = {
    "train.seed": "seeds gives it",
    "train.output_dir": "each run has a folder of the comparison's own",
    "train.stop_after": "the run would end without a summary",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")


@dataclass(frozen=True)
class _Phase:
    name: str
    overrides: Mapping[str, Any]
    seeds: Tuple[int, ...]
    cluster: SimulatedCluster


def load_plan(path: str, rate: Optional[str] = None) -> Comparison:
    """Reads a comparison and checks every run's configuration, so that nothing starts that could not all be run.

    Args:
        path: the YAML file.
        rate: in place of the file's rates; phases at no limited rate are then left out. None: as the file says.

    Raises:
        InputError: names the file and the key; for a run's configuration also its variant and phase.
    """
    try:
        return _plan(path, as_section(parse_yaml(read_text(path), path), "", KEYS, required=("base", "variants")), rate)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(path) else f"{path}: {text}") from None


def _plan(path: str, raw: Mapping[str, Any], rate: Optional[str]) -> Comparison:
    base = as_text(raw["base"], "base", "the path of a configuration")
    try:
        parse_yaml(read_text(base), base)
    except InputError as error:
        raise InputError(f"base: {error}") from None
    shared = _overrides(raw.get("base_overrides"), "base_overrides")
    variants = _variants(raw["variants"])
    phases = _phases(raw, as_seeds(raw.get("seeds", [1]), "seeds"), _cluster(raw.get("cluster", {})))
    if rate is not None:
        phases = _at_rate(phases, rate)
    runs = [
        _run(base, variant, phase, seed, [shared, phase.overrides, variants[variant]])
        for phase, variant, seed in _order(phases, list(variants))
    ]
    baseline = next(iter(variants)) if raw.get("baseline") is None else raw["baseline"]
    if baseline not in variants:
        raise InputError(f"baseline: found {shown(baseline)}, expected {one_of(baseline, tuple(variants))}")
    ignored = as_whole(raw.get("warmup_steps_ignored", 0), "warmup_steps_ignored", 0)
    timeout = as_timeout(raw.get("run_timeout", 3600))
    for run in runs:
        if run.config.train.steps <= ignored:
            raise InputError(
                f"warmup_steps_ignored ({ignored}) leaves no step of {run.name} (train.steps {run.config.train.steps})"
            )

    return Comparison(
        file=path,
        base=base,
        variants=tuple(variants),
        baseline=str(baseline),
        phases=tuple(phase.name for phase in phases),
        warmup_steps_ignored=ignored,
        run_timeout=timeout,
        runs=tuple(runs),
    )


def _at_rate(phases: Sequence[_Phase], rate: str) -> List[_Phase]:
    """The phases whose link is limited, at another rate."""
    limited = [
        replace(phase, cluster=replace(phase.cluster, rate=as_rate(rate, "--rate", phase.cluster.nodes)))
        for phase in phases
        if phase.cluster.rate is not None
    ]
    if not limited:
        raise InputError("--rate: no phase of the comparison has a rate; expected cluster.rate in the file")
    return limited


def _order(phases: Sequence[_Phase], variants: List[str]) -> List[Tuple[_Phase, str, int]]:
    """Seed by seed, each time starting with the next variant: a machine that slows down or warms up hits all alike."""
    order = []
    for phase in phases:
        for position, seed in enumerate(phase.seeds):
            first = position % len(variants)
            order += [(phase, variant, seed) for variant in variants[first:] + variants[:first]]
    return order


def _run(base: str, variant: str, phase: _Phase, seed: int, layers: Sequence[Mapping[str, Any]]) -> ComparedRun:
    """`layers` override the base in order: what all share, then the phase's, then the variant's own."""
    cluster = phase.cluster
    values: Dict[str, Any] = {"parallel.ranks_per_node": cluster.ranks_per_node} if cluster.nodes > 1 else {}
    for layer in layers:
        for key in layer:  # a later layer also takes the later place: a section set as a whole must not undo its keys
            values.pop(key, None)
        values.update(layer)
    overrides = []
    for key, value in values.items():  # on one line, from which YAML reads the same value
        plain = isinstance(value, str) and _PLAIN.fullmatch(value) and yaml.safe_load(value) == value
        overrides.append(f"{key}={value if plain else json.dumps(value, ensure_ascii=False)}")
    overrides.append(f"train.seed={seed}")
    where = f"variants.{variant}" + ("" if phase.name == SINGLE_PHASE else f" in phases.{phase.name}")
    try:
        config = load_config(base, overrides)
        validate(config, cluster.nodes * cluster.ranks_per_node)
        if cluster.nodes > 1 and config.parallel.ranks_per_node != cluster.ranks_per_node:
            raise InputError(
                f"parallel.ranks_per_node is {config.parallel.ranks_per_node}, but cluster.ranks_per_node "
                f"{cluster.ranks_per_node}; expected the same, or the key left out"
            )
        if config.train.stop_after is not None:
            raise InputError(
                f"train.stop_after is {config.train.stop_after}, expected null: {RESERVED['train.stop_after']}"
            )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return ComparedRun(phase.name, variant, seed, cluster, tuple(overrides), config, _settings(config, cluster))


def _settings(config: Config, cluster: SimulatedCluster) -> str:
    """Hash of the resolved configuration (without its folder), the cluster, the prepared data's manifest if there is
    one, and the files of a router and a dispatcher that the user brought along.
    """
    plain = to_dict(replace(config, train=replace(config.train, output_dir="")))
    manifest = Path(config.data.path) / "manifest.json"
    data = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None
    names = {config.moe.router.type, *(router.type for router in layer_routers(config))}
    found: List[Declared[Any]] = [*map(registered, sorted(names)), dispatchers()[config.moe.dispatch.type]]
    files = [one.origin for one in found if one.external]
    code = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
    text = json.dumps(
        [plain, [cluster.nodes, cluster.ranks_per_node, cluster.rate, cluster.pin], data, *code], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


# ---- sections


def _variants(raw: Any) -> Dict[str, Dict[str, Any]]:
    if not isinstance(raw, dict) or not raw:
        raise InputError(f"variants: found {shown(raw)}, expected a mapping of names to overrides")
    for name in raw:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(
                f"variants: found the name {shown(name)}, expected letters, digits and . _ + - (it names a folder)"
            )
    return {name: _overrides(value, f"variants.{name}") for name, value in raw.items()}


def _overrides(raw: Any, where: str) -> Dict[str, Any]:
    raw = {} if raw is None else raw
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise InputError(f"{where}: found {shown(raw)}, expected overrides, as in {{train.steps: 100}}")
    for key in raw:
        if key in RESERVED:
            raise InputError(f"{where}: {key} cannot be set in a comparison: {RESERVED[key]}")
    return raw


def _cluster(raw: Any) -> SimulatedCluster:
    section = as_section(raw, "cluster", CLUSTER_KEYS)
    nodes = as_whole(section.get("nodes", 1), "cluster.nodes", 1)
    pin = section.get("pin", False)
    if not isinstance(pin, bool):
        raise InputError(f"cluster.pin: found {shown(pin)}, expected true or false")
    if pin and nodes == 1:
        raise InputError("cluster.pin is true with cluster.nodes 1; expected false: the one node has all cores")
    workers = as_whole(section.get("ranks_per_node", 1), "cluster.ranks_per_node", 1)
    return SimulatedCluster(nodes, workers, as_rate(section.get("rate"), "cluster.rate", nodes), pin)


def _phases(raw: Mapping[str, Any], seeds: Tuple[int, ...], cluster: SimulatedCluster) -> List[_Phase]:
    if raw.get("phases") is None:
        return [_Phase(SINGLE_PHASE, {}, seeds, cluster)]
    sections = as_section(raw["phases"], "phases", PHASES)
    if not sections:
        raise InputError("phases: is empty, expected quality, time or both, or the key left out")
    phases = []
    for name in (name for name in PHASES if name in sections):
        where = f"phases.{name}"
        section = as_section({} if sections[name] is None else sections[name], where, PHASE_KEYS)
        rate = as_rate(section.get("rate", cluster.rate), f"{where}.rate", cluster.nodes)
        own_seeds = as_seeds(section["seeds"], f"{where}.seeds") if "seeds" in section else seeds
        phases.append(
            _Phase(
                name, _overrides(section.get("overrides"), f"{where}.overrides"), own_seeds, replace(cluster, rate=rate)
            )
        )
    return phases
