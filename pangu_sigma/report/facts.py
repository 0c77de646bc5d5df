"""What a reader of a report must know of its runs: model, parameters, ranks and nodes, data, date, machine, versions,
command. From the configuration, the run's environment.json, and its checkpoint or its data; what none of them says is
`not noted`.
"""

import time
from itertools import accumulate
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.checkpoint import format as checkpoint_format
from pangu_sigma.config import derived
from pangu_sigma.config.schema import Config
from pangu_sigma.data import manifest as data_manifest
from pangu_sigma.errors import DamagedCheckpoint
from pangu_sigma.planner.job import PlannedJob
from pangu_sigma.planner.parameters import count_parameters
from pangu_sigma.report.comparison import SimulatedCluster
from pangu_sigma.report.numbers import size
from pangu_sigma.runtime.strict_json import read_object

NOT_NOTED = "not noted"
ENVIRONMENT = "environment.json"
_MOST_NAMES = 4  # runs that a value names; of more it says how many
_MOST_CHARACTERS = 300  # of values of runs that differ; one is shown however long it is

Facts = Dict[str, str]


class RunVocabulary(NamedTuple):
    """Rows of a word table, the data's domains, and the ranks that homes of tokens refer to, where a checkpoint says
    so.
    """

    words: int
    domains: Tuple[str, ...]
    ranks: Optional[int] = None


def run_facts(folder: Path, config: Config, cluster: Optional[SimulatedCluster] = None) -> Facts:
    """Facts of one run by name.

    Args:
        folder: its folder.
        config: its configuration.
        cluster: that a comparison started it on; None: as environment.json or a checkpoint says.
    """
    launches = read_object(folder / ENVIRONMENT).get("launches")
    entries = [one for one in launches if isinstance(one, dict)] if isinstance(launches, list) else []
    last: Mapping[str, Any] = entries[-1] if entries else {}
    of_comparison = read_object(folder / "run.json").get("command")  # what `compare` started the run by
    command = " ".join(map(str, of_comparison)) if isinstance(of_comparison, list) else ""
    vocabulary = find_vocabulary(folder, config)
    if cluster is not None:
        ranks = cluster_text(config, cluster)
    else:
        noted = last.get("ranks")
        ranks = ranks_text(config, noted if isinstance(noted, int) else vocabulary.ranks if vocabulary else None)
    names = derived.router_names(config)
    return {
        "model": _model(config),
        "router": f"{names}, top-{config.moe.router.top_k}" if derived.has_experts(config) else "none",
        "parameters": _parameters(config, vocabulary),
        "ranks": ranks,
        "data": _data(config, vocabulary),
        "date": _date(folder, entries),
        "machine": _machine(last),
        "versions": _versions(last, str(read_object(folder / "summary.json").get("code", ""))),
        "command": _text(last.get("command")) or command or NOT_NOTED,
    }


def find_vocabulary(folder: Path, config: Config) -> Optional[RunVocabulary]:
    """As the run's newest checkpoint says, else the prepared data; None where neither can be read."""
    steps = sorted((folder / "checkpoints").glob("step_*"), key=lambda path: (len(path.name), path.name))
    try:
        if steps:
            header = checkpoint_format.read_manifest(steps[-1]).header
            ranks = (
                header.config["moe"]["logical_topology"]["world_size"] if config.moe.logical_topology is None else None
            )
            return RunVocabulary(header.data.vocab_size, header.data.domains, ranks)
        found = data_manifest.read_manifest(Path(config.data.path))
    except (InputError, DamagedCheckpoint, KeyError, TypeError):
        return None
    return RunVocabulary(config.model.vocab_size or found.vocab_size, found.domains)


def cluster_text(config: Config, cluster: SimulatedCluster) -> str:
    """Ranks of a comparison's run, and their nodes.

    Args:
        config: of the run.
        cluster: that it is started on.
    """
    return ranks_text(config, cluster.nodes * cluster.ranks_per_node, cluster.nodes if cluster.nodes > 1 else None)


def ranks_text(config: Config, ranks: Optional[int], simulated_nodes: Optional[int] = None) -> str:
    """Ranks and nodes, the parallel degrees, and the cluster that locality refers to where that is another one.

    Args:
        config: of the run.
        ranks: of the job; None: not known.
        simulated_nodes: network namespaces of one machine; None: nodes are as the configuration says.
    """
    if ranks is None:
        return NOT_NOTED
    parallel, layout = config.parallel, config.moe.logical_topology
    per_node = parallel.ranks_per_node or ranks
    nodes = simulated_nodes or (ranks // per_node if ranks % per_node == 0 else 1)
    text = f"{ranks} rank{'s' if ranks > 1 else ''} on {nodes} node{'s' if nodes > 1 else ''}"
    if nodes > 1:
        text += f" of {ranks // nodes}" + (", simulated" if simulated_nodes else "")
    degrees = ((parallel.expert, "expert"), (parallel.tensor, "tensor"))
    text += "".join(f", {kind}-parallel {degree}" for degree, kind in degrees if degree > 1)
    if layout is not None and layout.world_size != ranks:
        text += f"; locality as on {layout.world_size} ranks on {layout.world_size // layout.ranks_per_node} nodes"
    return text


def facts_table(named: Sequence[Tuple[str, Facts]]) -> List[List[str]]:
    """A row a fact: its name, and its value; of runs that differ each value, with the runs that have it.

    Args:
        named: names of the runs with their facts.
    """
    rows = []
    for fact in dict.fromkeys(fact for _, facts in named for fact in facts):
        by_value: Dict[str, List[str]] = {}
        for name, facts in named:
            by_value.setdefault(facts.get(fact, NOT_NOTED), []).append(name)
        if len(by_value) == 1:
            rows.append([fact, next(iter(by_value))])
            continue
        values = [
            f"{value} ({', '.join(names) if len(names) <= _MOST_NAMES else f'{len(names)} runs'})"
            for value, names in by_value.items()
        ]
        ends = list(accumulate(map(len, values)))
        shown = max(1, sum(end <= _MOST_CHARACTERS for end in ends))
        more = [f"and {len(values) - shown} more"] if len(values) > shown else []
        rows.append([fact, "; ".join([*values[:shown], *more])])
    return rows


def _model(config: Config) -> str:
    model, moe = config.model, config.moe
    query = "sparse query layer" if model.sparse_query_layer else "query layer"
    text = (
        f"{model.dense_layers} dense + {model.sparse_layers} sparse layers and a {query}, hidden {model.hidden_size}, "
        f"{model.num_heads} heads, sequences of {model.sequence_length}"
    )
    if derived.has_experts(config):
        groups = f" in {moe.num_groups} groups" if moe.num_groups > 1 else ""
        shared = f" and {moe.shared_experts} shared" if moe.shared_experts else ""
        text += f"; {moe.num_experts} experts{groups}{shared} a sparse layer"
    return text


def _parameters(config: Config, vocabulary: Optional[RunVocabulary]) -> str:
    if vocabulary is None:
        return NOT_NOTED
    ranks = config.parallel.expert * config.parallel.tensor  # replicas add no parameter
    try:
        topology = Topology(ranks, ranks, config.parallel.expert, config.parallel.tensor)
        counts = count_parameters(PlannedJob(config, topology, vocabulary.words, len(vocabulary.domains)))
    except (InputError, ValueError):  # a tensor that the ranks cannot share out
        return NOT_NOTED
    text = _millions(counts.total)
    if counts.experts:
        text += f", of which {_millions(counts.experts)} in experts; a token passes {_millions(counts.active)}"
    return text


def _millions(count: int) -> str:
    if count < 1e6:
        return f"{count:,}"
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.2f} million"


def _data(config: Config, vocabulary: Optional[RunVocabulary]) -> str:
    if vocabulary is None:
        return config.data.path
    return f"{config.data.path}: {', '.join(vocabulary.domains)}; vocabulary {vocabulary.words:,}"


def _date(folder: Path, launches: Sequence[Mapping[str, Any]]) -> str:
    dates = [_text(one.get("date")) for one in launches]
    if dates and dates[0]:
        resumed = len(dates) - 1
        return dates[0] + (f", resumed {resumed} time{'s' if resumed > 1 else ''}, last {dates[-1]}" if resumed else "")
    try:
        written = (folder / "metrics.jsonl").stat().st_mtime
    except OSError:
        return NOT_NOTED
    return time.strftime("metrics written %Y-%m-%d", time.localtime(written))


def _machine(launch: Mapping[str, Any]) -> str:
    memory, cpus = launch.get("memory(B)"), launch.get("cpus")
    parts = [
        _text(launch.get("host")),
        f"Ascend {launch['chip']}" if _text(launch.get("chip")) else "",
        _text(launch.get("cpu")),
        f"{cpus} CPUs" if isinstance(cpus, int) else "",
        f"{size(memory)} of memory" if isinstance(memory, (int, float)) else "",
        _text(launch.get("system")),
    ]
    return ", ".join(filter(None, parts)) or NOT_NOTED


def _versions(launch: Mapping[str, Any], code: str) -> str:
    packages = launch.get("packages")
    named = packages if isinstance(packages, dict) else {}
    parts = [
        f"pangu-sigma {launch['version']}" if _text(launch.get("version")) else "",
        f"Python {launch['python']}" if _text(launch.get("python")) else "",
        *(f"{name} {version}" for name, version in named.items()),
        f"CANN {launch['cann']}" if _text(launch.get("cann")) else "",
        f"driver {launch['driver']}" if _text(launch.get("driver")) else "",
    ]
    commit = _text(launch.get("commit"))
    if commit:
        parts.append(f"commit {commit[:12]}" + (", changed since" if launch.get("changed_since_commit") else ""))
    elif code:
        parts.append(f"code {code}")
    return ", ".join(filter(None, parts)) or NOT_NOTED


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
