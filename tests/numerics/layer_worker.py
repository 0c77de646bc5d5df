"""One rank of a job that runs every case on its share of the tokens: layer_worker.py RANK PORT PARENT FOLDER.

Leaves `rank_R.npz` in the folder, with arrays named `CASE/DRAW/NAME`.
"""

import gc
import os
import sys
from pathlib import Path

import numpy as np
from compiled_layer import CompiledLayer
from layer_cases import CASES, DRAWS, RANKS, TOKENS, batch_of

import mindspore as ms

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.collectives.tcp.mesh import join_mesh


def main() -> None:
    rank, port, parent = (int(argument) for argument in sys.argv[1:4])
    ms.set_device("CPU")
    gc.freeze()  # MindSpore collects garbage before every graph: what was imported is none
    secret = os.environ["MESH_SECRET"].encode()
    mesh = join_mesh(
        rank, RANKS, ("127.0.0.1", port), secret, join_timeout=300.0, collective_timeout=600.0, parent_pid=parent
    )
    results = {}
    # Graphs last: after them PyNative mode takes fewer kinds of indices.
    for name, case in sorted(CASES.items(), key=lambda item: item[1].compiled):
        ms.set_context(mode=ms.GRAPH_MODE if case.compiled else ms.PYNATIVE_MODE)
        collectives = create_collectives("tcp", case.layout, rank, mesh)
        layer = CompiledLayer(case, collectives, TOKENS)
        for draw in DRAWS:
            ranks, gradients = batch_of(case, draw)
            arrays = layer.run(ranks[rank], gradients[rank])
            results.update({f"{name}/{draw}/{key}": array for key, array in arrays.items()})
    mesh.barrier(range(RANKS), "end")
    mesh.close()
    np.savez(Path(sys.argv[4], f"rank_{rank}.npz"), **results)


if __name__ == "__main__":
    main()
