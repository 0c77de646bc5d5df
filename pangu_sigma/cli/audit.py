"""`pangu-sigma audit`: what a job's compiled graphs exchange."""

import argparse
from typing import Any

from pangu_sigma.cli.arguments import add_command, positive, refuse_old_name
from pangu_sigma.config.schema import Config


def add_audit(commands: Any) -> None:
    """Adds the command to the program's parser."""
    parser = add_command(
        commands, "audit", "compile the hccl graphs of all ranks on CPU, and check what they exchange", _audit
    )
    parser.add_argument("--nodes", type=positive, metavar="N", help="nodes (default: the fewest that hold all experts)")
    parser.add_argument(
        "--ranks-per-node", type=positive, metavar="M", help="ranks a node (default: parallel.ranks_per_node, or all)"
    )
    refuse_old_name(parser, "--devices-per-node", "--ranks-per-node")
    parser.add_argument(
        "--hardware",
        metavar="NAME",
        help="file of configs/hardware, or a path, for its chip (default: by runtime.chip)",
    )
    parser.add_argument(
        "--kernels", action="store_true", help="count what rank 0 launches in kernel-by-kernel mode, by Cell and graph"
    )
    parser.add_argument("--json", action="store_true", help="print every collective of every rank as JSON")
    parser.add_argument("--keep", metavar="DIR", help="leave the graphs (MindIR) in this new folder")
    parser.add_argument(
        "--timeout", type=positive, default=3600, metavar="S", help="seconds for the ranks to compile (default 3600)"
    )


def _audit(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.audit.audit import audit

    return audit(
        config,
        options.nodes,
        options.ranks_per_node,
        options.json,
        options.keep,
        options.timeout,
        options.hardware,
        options.kernels,
    )
