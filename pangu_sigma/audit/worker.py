"""One rank of an audit under msrun: compiles the step with hccl's primitives on CPU and writes its graphs; nothing is
run.

usage: worker.py [--first] FOLDER ...     Each folder holds a config.yaml and a words.json: words of the vocabulary, and
    domains. --first: only the first rank compiles; the others make their process groups.
"""

import gc
import json
import os
import sys
from pathlib import Path

import numpy as np

import mindspore as ms

from locmoe_ops.collectives.hccl import HcclCollectives
from pangu_sigma.bench.step import random_batch
from pangu_sigma.config.chips import known_chip
from pangu_sigma.config.derived import job_topology, micro_batch_sequences
from pangu_sigma.config.load import load_config
from pangu_sigma.config.schema import Config
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.runtime.launch import read_launch
from pangu_sigma.runtime.mindir import export_graph
from pangu_sigma.runtime.processes import end_with_parent
from pangu_sigma.runtime.router_files import use_router_files
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.runtime.settings import switch_off_compile_cache
from pangu_sigma.runtime.strict_json import dumps
from pangu_sigma.train.engine import TrainEngine


def export_rank(
    config: Config,
    rank: int,
    world_size: int,
    words: int,
    domains: int,
    folder: Path,
    job: str,
    compiles: bool = True,
) -> None:
    """Writes `<graph>_<rank>.mindir` for each graph of the step, then `rank_<rank>.json`: their names and times, and
    the groups.

    Args:
        config: of the job.
        rank, world_size: this rank, and how many there are.
        words, domains: of the data: rows of one slot of the word table, and domains.
        folder: where the files go.
        job: how the names of its process groups begin, another one for each job of this process.
        compiles: False writes no graph, and only makes the process groups, which other ranks wait for.
    """
    topology = job_topology(config, world_size)
    collectives = HcclCollectives(rank, topology, job, config.parallel.all_to_all == "gathered")
    vocabulary = Vocabulary(words, domains, np.ones((config.moe.num_groups, words), np.int64))
    engine = TrainEngine(config, Runtime(collectives, chip=known_chip(config.runtime.chip)), vocabulary)
    batch = random_batch(micro_batch_sequences(config, topology.data), config.model.sequence_length, vocabulary)
    graphs = []
    for graph in engine.graphs(batch) if compiles else ():
        export_graph(graph.cell, graph.inputs, folder / f"{graph.name}_{rank}")
        graphs.append([graph.name, graph.times])
    note = {"graphs": graphs, "groups": collectives.groups}
    (folder / f"rank_{rank}.json").write_text(dumps(note))


def main() -> None:
    from mindspore.communication import init

    switch_off_compile_cache(tell=False)  # it might give another job's graph
    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    init()
    use_router_files(())
    gc.freeze()  # MindSpore collects garbage around every graph that it compiles: what was imported is none
    launch = read_launch()
    first, *folders = sys.argv[1:] if sys.argv[1] == "--first" else ("", *sys.argv[1:])
    for number, folder in enumerate(map(Path, folders)):
        words, domains = json.loads((folder / "words.json").read_text())
        config = load_config(str(folder / "config.yaml"))
        compiles = not first or launch.rank == 0
        export_rank(config, launch.rank, launch.world_size, words, domains, folder, f"job{number}", compiles)


if __name__ == "__main__":
    end_with_parent()  # killed outright, msrun leaves its workers behind
    if os.getppid() == 1:
        sys.exit("msrun was gone before the audit's rank had started")
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        from mindspore.communication import init

        init()  # MindSpore forms its cluster around this process
    else:
        main()
