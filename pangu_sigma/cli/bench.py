"""`pangu-sigma bench`: measures this machine and the model on it."""

import argparse
from typing import Any

from locmoe_ops.errors import InputError
from pangu_sigma.cli.arguments import (
    add_command,
    add_family,
    add_plain,
    from_zero,
    of_this_rank,
    rate,
    run_by_ranks,
    sizes,
)
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import validate
from pangu_sigma.runtime.launch import is_worker


def add_bench(commands: Any) -> None:
    """Adds the command to the program's parser."""
    benches = add_family(commands, "bench", "measure this machine and the model on it")
    add_command(benches, "step", "FLOP/s of the compiled step, and where its time goes", _step)
    all_to_all = add_command(
        benches,
        "all-to-all",
        "dispatchers versus the link's limit; by ranks of a job (launch --bench all-to-all)",
        _all_to_all,
    )
    run_by_ranks(all_to_all)
    all_to_all.add_argument(
        "--tokens",
        type=sizes,
        default=(),
        metavar="N,N,...",
        help="tokens a rank (default: powers of two from 64 up to the configuration's)",
    )
    all_to_all.add_argument(
        "--rate", type=rate, metavar="R", help="rate of a node's link, as in 200mbit (default: measure plain exchanges)"
    )
    all_to_all.add_argument(
        "--routing",
        default="balanced",
        metavar="R",
        help="the tokens' experts: balanced (default), skewed:S (shares as r ** -S) or trace:FILE (of eval --trace)",
    )
    all_to_all.add_argument(
        "--layer", type=from_zero, metavar="N", help="with --routing trace: sparse layer, from 0 (default: the lowest)"
    )
    decode = add_command(
        benches, "decode", "tokens a second by batch size, versus the limit of memory; bytes of the caches", _decode
    )
    decode.add_argument(
        "--batch-sizes", type=sizes, default=(1, 2, 4, 8, 16), metavar="N,N,...", help="default: 1,2,4,8,16"
    )
    mesh = add_plain(
        benches, "mesh", "all-to-all and all-reduce of this machine's processes, beside plain sockets and gloo", _mesh
    )
    mesh.add_argument("--ranks", type=sizes, default=(2, 4), metavar="N,N,...", help="processes (default: 2,4)")
    mesh.add_argument(
        "--sizes",
        type=sizes,
        default=tuple(4 << 10 << 2 * place for place in range(7)),
        metavar="N,N,...",
        help="bytes of each rank's array (default: 4 KB to 16 MB)",
    )
    add_command(benches, "router", "routers versus the dense gate: time, and bytes of their statistics", _router)


def _step(config: Config, options: argparse.Namespace) -> int:
    validate(config, 1)
    from pangu_sigma.bench.step import bench_step

    return bench_step(config)


def _all_to_all(config: Config, options: argparse.Namespace) -> int:
    if not is_worker():
        raise InputError(
            "bench all-to-all measures ranks of a job; expected to run under msrun, as pangu-sigma launch "
            "--bench all-to-all does, or with a rank table"
        )
    config = of_this_rank(config)
    from pangu_sigma.bench.all_to_all import bench_all_to_all
    from pangu_sigma.bench.routing import routing_of

    return bench_all_to_all(config, options.tokens, options.rate, routing_of(options.routing, options.layer))


def _router(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.bench.router import bench_router

    return bench_router(config)


def _mesh(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.bench.mesh import bench_mesh

    return bench_mesh(options.ranks, options.sizes)


def _decode(config: Config, options: argparse.Namespace) -> int:
    from pangu_sigma.bench.decode import bench_decode

    return bench_decode(config, options.batch_sizes)
