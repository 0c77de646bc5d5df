"""What would make a configuration fit, where it does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, Iterable, Optional, Sequence

from locmoe_ops.errors import InputError
from pangu_sigma.config.check_chip import with_chip
from pangu_sigma.config.chips import CHIPS
from pangu_sigma.config.derived import num_blocks
from pangu_sigma.config.schema import Config
from pangu_sigma.planner.cluster import Cluster
from pangu_sigma.planner.hardware import load_hardware, shipped_hardware
from pangu_sigma.planner.job import plan_job
from pangu_sigma.planner.memory import GB, rank_memory
from pangu_sigma.planner.predict import step_time

_MOST_NODES = 4  # times as many as there are
_MOST_SETTINGS = 2  # of which all combinations are tried
_UNKNOWN_PRICE = ("moe.capacity.factor", "optimizer.expert_state")  # dropped tokens, and the host's time


@dataclass(frozen=True)
class Change:
    """A way to need less memory.

    Attributes:
        settings: what to set, as words for the command line.
        nodes: that it takes.
        memory: bytes of a rank then.
        seconds: of a step then; 0 where it does not fit.
        fits: whether that is enough.
        unknown: settings whose price is not in the plan.
    """

    settings: tuple[str, ...]
    nodes: int
    memory: float
    seconds: float
    fits: bool
    unknown: int


_Setting = tuple[str, Any]  # path of a key, or "nodes"; and its value


class _Search:
    """Changes of a configuration on a cluster, each planned once.

    Args:
        config, cluster: what is changed. words: what it takes besides, for the command line.
    """

    def __init__(self, config: Config, cluster: Cluster, words: tuple[str, ...] = ()) -> None:
        self.config, self.cluster, self.words = config, cluster, words
        self._known: dict[frozenset[_Setting], Optional[Change]] = {}

    def tried(self, settings: Sequence[_Setting]) -> Optional[Change]:
        """The change of these `settings`, or None where they do not fit together."""
        key = frozenset(settings)
        if key not in self._known:
            self._known[key] = self._planned(settings)
        return self._known[key]

    def _planned(self, settings: Sequence[_Setting]) -> Optional[Change]:
        config, cluster = self.config, self.cluster
        for path, value in settings:
            if path == "nodes":
                cluster = replace(cluster, nodes=value)
            else:
                config = with_value(config, path, value)
        hardware = cluster.hardware
        try:
            config = with_chip(config, hardware.chip, hardware.name)
            job = plan_job(config, cluster.nodes, cluster.ranks_per_node)
        except InputError:
            return None
        total = rank_memory(job, hardware).total
        fits = total * hardware.sharing(job.topology) <= hardware.memory.capacity_gb.value * GB
        texts = [f"--nodes {value}" if path == "nodes" else f"--set {path}={value}" for path, value in settings]
        seconds = step_time(job, hardware).total if fits else 0.0
        unknown = sum(path in _UNKNOWN_PRICE for path, _ in settings)
        return Change((*self.words, *texts), cluster.nodes, total, seconds, fits, unknown)

    def options(self) -> list[list[_Setting]]:
        """The other values of each setting; degrees first, nodes last."""
        config, nodes = self.config, self.cluster.nodes
        rows = plan_job(config, nodes, self.cluster.ranks_per_node).rows
        parallel, capacity, layers = config.parallel, config.moe.capacity, num_blocks(config) + 1
        parts: list[Any] = ["attention", "sparse", *sorted({layers * i // 4 for i in (1, 2, 3)} - {0}), "all"]
        return [
            [("parallel.tensor", parallel.tensor << i) for i in range(1, 4)],
            [("parallel.expert", parallel.expert << i) for i in range(1, 8)],
            [("train.recompute", part) for part in parts if part != config.train.recompute],
            [("train.micro_batch_size", value) for value in range(rows - 1, 0, -1) if rows % value == 0],
            [("moe.capacity.factor", 1.0)] if capacity.mode == "factor" and capacity.factor > 1.0 else [],
            [("optimizer.zero", "data_parallel")] if config.optimizer.zero == "none" else [],
            [("optimizer.expert_state", "host_dense")] if config.optimizer.expert_state == "device" else [],
            [("nodes", nodes << i) for i in range(1, _MOST_NODES.bit_length())],
        ]


def nearest_change(config: Config, cluster: Cluster) -> Optional[Change]:
    """The change of fewest settings with which a rank's tensors fit, without more nodes if possible; of equally few,
    that which takes the fewest nodes, then settings whose price the plan knows, then that of the shortest step.

    Settings are what is recomputed, rows of a micro-batch, capacity factor, optimizer state shared out over replicas,
    experts' state on the host, degrees of tensor and expert parallelism, and nodes. Where no two of them do, as many as
    it takes. Where all of them do not: the shipped hardware that has more memory and computes in the configuration's
    precision, the smallest first, alone or with such a change; else None.

    Args:
        config: that does not fit. cluster: what it does not fit on.
    """
    return _nearest(_Search(config, cluster))


def _nearest(search: _Search) -> Optional[Change]:
    options = search.options()
    for chosen in (options[:-1], options):  # first without more nodes
        found = _best(_combined(search, chosen, range(1, _MOST_SETTINGS + 1))) or _many_settings(search, chosen)
        if found is not None and found.fits:
            return found
    for larger in _larger_machines(search.config, search.cluster):
        found = _best(_combined(larger, options, range(_MOST_SETTINGS + 1)))
        if found is not None:
            return found
    return None


def advice(config: Config, cluster: Cluster) -> str:
    """The nearest change that makes the configuration fit, and memory then. Where that is other hardware, or nothing,
    also what needs least memory on the hardware at hand.

    Args:
        config, cluster: as of `nearest_change`.
    """
    search = _Search(config, cluster)
    change = _nearest(search)
    found = "nothing found" if change is None else f"{' '.join(change.settings)} ({change.memory / GB:.1f} GB)"
    if change is not None and not change.settings[0].startswith("--hardware"):
        return found
    least = _many_settings(search, search.options()[:-1])
    if least is None:
        return f"{found}; on this hardware no key makes it smaller"
    return f"{found}; least on this hardware: {' '.join(least.settings)} ({least.memory / GB:.1f} GB)"


def _combined(search: _Search, options: Sequence[Sequence[_Setting]], numbers: Iterable[int]) -> list[Change]:
    """All changes of so many settings that fit, for the first of `numbers` of which there are any."""
    for number in numbers:
        combined = (settings for axes in combinations(options, number) for settings in product(*axes))
        found = [change for change in map(search.tried, combined) if change is not None and change.fits]
        if found:
            return found
    return []


def _many_settings(search: _Search, options: Sequence[Sequence[_Setting]]) -> Optional[Change]:
    """The best change of as many settings as it takes, or where none fits, that of least memory; None where nothing
    saves anything.

    From each pair of degrees, which exclude each other, the other settings that save most are taken one after another.
    """
    tensor, expert, *others = options
    found = []
    for pair in product([None, *tensor], [None, *expert]):
        start = tuple(setting for setting in pair if setting is not None)
        change = _one_after_another(search, start, others)
        if change is not None and change.settings:
            found.append(change)
    fitting = [change for change in found if change.fits]
    if fitting:
        fewest = min(len(change.settings) for change in fitting)
        return _best([change for change in fitting if len(change.settings) == fewest])
    return min(found, key=lambda change: change.memory, default=None)


def _one_after_another(
    search: _Search, start: tuple[_Setting, ...], axes: Sequence[Sequence[_Setting]]
) -> Optional[Change]:
    """`start`, and the setting that saves most with what is chosen already, of an axis that is left, until a rank fits
    or nothing saves more; without those that it then fits without. None where `start` does not fit together.
    """
    chosen, least = start, search.tried(start)
    while least is not None and not least.fits:
        taken = {path for path, _ in chosen}
        rest = [(*chosen, one) for axis in axes for one in axis if one[0] not in taken]
        tried = [(change, settings) for settings in rest if (change := search.tried(settings)) is not None]
        smaller = [(change, settings) for change, settings in tried if change.memory < least.memory]
        if not smaller:
            return least
        least, chosen = min(smaller, key=lambda each: (not each[0].fits, each[0].nodes, each[0].memory))
    for setting in chosen:
        fewer = tuple(one for one in chosen if one != setting)
        change = search.tried(fewer)
        if change is not None and change.fits:
            chosen, least = fewer, change
    return least


def _larger_machines(config: Config, cluster: Cluster) -> list[_Search]:
    """On each shipped hardware of more memory, the smallest first."""
    capacity, precision = cluster.hardware.memory.capacity_gb.value, config.runtime.precision
    found = []
    shipped = [(name, load_hardware(name)) for name in shipped_hardware()]
    for name, hardware in sorted(shipped, key=lambda each: each[1].memory.capacity_gb.value):
        if hardware.memory.capacity_gb.value <= capacity or hardware.compute.peak_tflops.of(precision) is None:
            continue
        changes: dict[str, Any] = {}  # keys that name the chip, or are for it alone
        if config.runtime.chip != "auto" and hardware.chip is not None:
            changes["runtime.chip"] = hardware.chip
            if config.runtime.hccl.unchecked_all_to_all and CHIPS[hardware.chip].cluster.value is None:
                changes["runtime.hccl.unchecked_all_to_all"] = False
        moved = config
        for path, value in changes.items():
            moved = with_value(moved, path, value)
        words = (f"--hardware {name}", *(f"--set {path}={str(value).lower()}" for path, value in changes.items()))
        found.append(_Search(moved, replace(cluster, hardware=hardware), words))
    return found


def _best(changes: Sequence[Change]) -> Optional[Change]:
    """Of equally many settings."""
    return min(changes, key=lambda each: (each.nodes, each.unknown, each.seconds, each.memory), default=None)


def with_value(config: Any, path: str, value: Any) -> Any:
    """A copy of the configuration (or section) `config` with one key changed: the one of that `path` has `value`."""
    name, _, rest = path.partition(".")
    return replace(config, **{name: with_value(getattr(config, name), rest, value) if rest else value})
