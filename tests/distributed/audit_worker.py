"""One rank of jobs whose second rank compiles another step than the first: what an audit must catch.

usage: audit_worker.py CASES   (under msrun)    CASES: JSON, name -> [configuration of rank 0, of rank 1]; graphs go beside it
"""

import json
import os
import sys
from pathlib import Path

import mindspore as ms
from mindspore.communication import init

from pangu_sigma.config import config_from_dict
from pangu_sigma.launch import read_launch
from pangu_sigma.tools.audit.worker import export_rank


def main() -> None:
    path = Path(sys.argv[1])
    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    init()
    launch = read_launch()
    for name, configs in json.loads(path.read_text()).items():
        folder = path.parent / name
        folder.mkdir(exist_ok=True)
        export_rank(config_from_dict(configs[launch.rank]), launch.rank, launch.world_size, 50, 2, folder)


if __name__ == "__main__":
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        init()
    else:
        main()
