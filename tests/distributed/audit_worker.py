"""One rank of jobs whose second rank compiles another step than the first: what an audit must catch; and the graphs of
generation.

usage: audit_worker.py CASES   (under msrun)    CASES: JSON, name -> [configurations of both ranks, ranks that compile];
    graphs go beside it

The first case's model is also compiled for generation with its experts spread over the ranks, into the folder
`generation`.
"""

import gc
import json
import os
import sys
from pathlib import Path

import numpy as np

import mindspore as ms
from mindspore import Tensor
from mindspore.communication import init

from locmoe_ops.collectives.hccl import HcclCollectives
from locmoe_ops.topology import Topology
from pangu_sigma.audit.worker import export_rank
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.inference.cells import Decode, Prefill, empty_caches
from pangu_sigma.inference.load import inference_config, network_context
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.runtime.launch import Launch, read_launch


def export_generation(config: Config, launch: Launch, folder: Path) -> None:
    """As `export_rank` does it for training: both graphs, for two rows of eight tokens, and what they are."""
    collectives = HcclCollectives(launch.rank, Topology(launch.world_size, launch.world_size, launch.world_size))
    context = network_context(inference_config(config, launch.world_size), 50, 2, collectives)
    network = PanGuSigma(context)
    row, column, whole = (Tensor(np.zeros(shape, np.int32)) for shape in ((2,), (2, 1), (2, 8)))
    prefill, decode = Prefill(network, context, 2, 8), Decode(network, context, 2, 8)
    inputs = {
        "prefill": (whole, whole, row, row, row),
        "decode": (column, column, column, row, row, *empty_caches(network, 2, 8)),
    }
    for name, cell in (("prefill", prefill), ("decode", decode)):
        ms.export(cell, *inputs[name], file_name=str(folder / f"{name}_{launch.rank}"), file_format="MINDIR")
    note = {"graphs": [[name, 1] for name in inputs], "groups": collectives.groups}
    (folder / f"rank_{launch.rank}.json").write_text(json.dumps(note))


def main() -> None:
    path = Path(sys.argv[1])
    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    init()
    gc.freeze()  # MindSpore collects garbage before every graph: what was imported is none
    launch, cases = read_launch(), json.loads(path.read_text())
    (path.parent / "generation").mkdir(exist_ok=True)
    export_generation(config_from_dict(next(iter(cases.values()))[0][0]), launch, path.parent / "generation")
    for name, (configs, compiling) in cases.items():
        folder, own = path.parent / name, config_from_dict(configs[launch.rank])
        folder.mkdir(exist_ok=True)
        export_rank(own, launch.rank, launch.world_size, 50, 2, folder, name, launch.rank in compiling)


if __name__ == "__main__":
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        init()
    else:
        main()
