"""This process's place in the job: device, rank, topology and collectives."""

import gc
import os
from dataclasses import dataclass, replace
from typing import Any, Dict, Optional, Type

import numpy as np

import mindspore as ms

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.collectives.interface import Collectives
from locmoe_ops.collectives.rank_numbers import check_rank_numbers
from locmoe_ops.collectives.tcp.mesh import Mesh
from locmoe_ops.topology import Topology
from pangu_sigma.config.ascend import resolve_runtime
from pangu_sigma.config.check_chip import check_chip, with_chip
from pangu_sigma.config.check_compile import AUTO
from pangu_sigma.config.chips import chip_of_soc, known_chip
from pangu_sigma.config.derived import job_topology
from pangu_sigma.config.schema import Config
from pangu_sigma.runtime.compile_cache.executor import SUPPORTED, CompileCache, cache_in_use, use_compile_cache
from pangu_sigma.runtime.compile_cache.folder import open_store
from pangu_sigma.runtime.join import join_ranks
from pangu_sigma.runtime.launch import check_ranks, read_launch
from pangu_sigma.runtime.settings import set_context, set_environment, switch_off_compile_cache

AGREEMENT = "compile_cache/found"
# What a step's graph is given with each step, the learning rate, comes from these keys; they are no part of the graph.
GIVEN: Dict[str, Any] = {
    "learning_rate": 1.0,
    "end_learning_rate": 0.0,
    "schedule": "constant",
    "warmup_steps": 0,
    "decay_steps": None,
}


@dataclass(frozen=True)
class Runtime:
    """What the rest of the program knows of the job; a context manager that leaves it in good order.

    On an error the mesh is told first, so that every rank ends with the reason, and the cause of a failed collective is
    raised in place of what compiled code made of it.

    Attributes:
        collectives: of this rank. mesh: that they run on, with the tcp backend.
        chip: a name of `pangu_sigma.config.chips.CHIPS`; None: this process has no Ascend device.
    """

    collectives: Collectives
    mesh: Optional[Mesh] = None
    chip: Optional[str] = None

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], _: Any) -> None:
        failure = self.mesh.failure if self.mesh is not None else None
        if error is not None and failure is None and self.mesh is not None:
            self.mesh.abort(" ".join(str(error).split())[:200] or type(error).__name__)
        self.collectives.close()
        cache = cache_in_use()
        if cache is not None and self.is_first and error is None:
            cache.tell_counts()
        if isinstance(error, Exception) and failure is not None and error is not failure:
            raise failure from error

    @property
    def rank(self) -> int:
        return self.collectives.rank

    @property
    def topology(self) -> Topology:
        return self.collectives.topology

    @property
    def world_size(self) -> int:
        return self.topology.world_size

    def check_groups(self) -> None:
        """Tries each group of an hccl job once, when this rank has made its Cells; every rank must call it. A mesh
        needs no trial: it knows what it has received.

        Raises:
            CollectiveError: a group does not carry what is sent.
        """
        if self.mesh is None and self.world_size > 1:
            check_rank_numbers(self.collectives)

    @property
    def is_first(self) -> bool:
        """True on the rank that writes what is written once."""
        return self.rank == 0


def start_runtime(config: Config) -> Runtime:
    """Sets MindSpore up and joins the other ranks.

    Raises:
        InputError: the launcher's environment is incomplete or contradicts the configuration or MindSpore, the
            device's chip has not what that asks for, or the meeting port is taken.
        CollectiveError: a rank did not join before `runtime.join_timeout`.
    """
    launch, resolved = read_launch(), resolve_runtime(config)
    set_environment(config.runtime.hccl)
    switch_off_compile_cache(tell=launch.rank == 0)
    use_compile_cache(None)  # of a job before, in this process
    if resolved.runtime.device == "ascend":
        ms.set_device("Ascend", launch.device)
        resolved = with_chip(resolved, device_chip(), "the device")
        check_chip(launch.fit(resolved), launch.world_size)
    else:
        ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE if config.runtime.mode == "graph" else ms.PYNATIVE_MODE)
    set_context(resolved.runtime)
    gc.freeze()  # MindSpore collects garbage around every graph that it compiles: what was imported is none
    rank, world_size = launch.rank, launch.world_size
    chip = known_chip(resolved.runtime.chip)
    topology = job_topology(launch.fit(config), world_size)
    gathered = config.parallel.all_to_all == "gathered"
    if world_size == 1:
        keep_graphs(resolved, topology, rank, None)
        return Runtime(create_collectives("local", topology, rank), chip=chip)
    if resolved.runtime.backend == "tcp":
        mesh = join_ranks(config, rank, world_size)
        collectives = create_collectives("tcp", topology, rank, mesh, gathered)
        keep_graphs(resolved, topology, rank, mesh)
        return Runtime(collectives, mesh)
    from mindspore.communication import get_group_size, get_rank, init

    init()
    check_ranks(launch, get_rank(), get_group_size())
    eager = config.runtime.mode == "pynative"
    return Runtime(create_collectives("hccl", topology, rank, gathered=gathered, eager=eager), chip=chip)


def keep_graphs(config: Config, topology: Topology, rank: int, mesh: Optional[Mesh]) -> None:
    """Takes graphs from the folder of `runtime.compile_cache` from now on, and adds to it.

    Every rank must call it. Ranks that keep graphs ask each other before each one that exchanges tensors, but the
    folder of auto may be writable for some ranks alone: all of them keep graphs, or none does.

    Args:
        config: resolved for this machine.
        topology, rank: the job's, and this process's.
        mesh: by which its ranks agree; None: it has one.

    Raises:
        InputError: a folder that the configuration or the environment names cannot be used.
    """
    world = topology.world_size

    def agree(found: bool) -> bool:
        if mesh is None:
            return found
        return int(mesh.all_reduce(range(world), AGREEMENT, np.array([found], np.int64))[0]) == world

    by_default = config.runtime.compile_cache == AUTO
    store = open_store(config.runtime, os.environ) if SUPPORTED or not by_default else None
    if not agree(store is not None) or store is None:
        return
    optimizer = replace(config.optimizer, **GIVEN)
    reaching = [config.model, config.moe, config.parallel, optimizer, config.runtime.precision]
    job = {"rank": rank, "topology": repr(topology), "configuration": repr(reaching)}
    use_compile_cache(CompileCache(store, job, agree, tell=rank == 0 and not by_default))


def device_chip() -> Optional[str]:
    """The chip of this process's Ascend device, as MindSpore finds it; None: one that is not in the table."""
    from mindspore._c_expression import MSContext  # MindSpore's own loss scaling asks it, nothing public does

    return chip_of_soc(MSContext.get_instance().get_ascend_soc_version())
