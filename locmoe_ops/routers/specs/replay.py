"""Declaration of the router that takes the decisions of a routing trace again (ours)."""

from dataclasses import dataclass
from typing import Optional

from locmoe_ops.errors import InputError
from locmoe_ops.keys import key
from locmoe_ops.router_registry import RouterSizes, RouterSpec
from locmoe_ops.routing_trace import check_fits, read_trace

TRACE = "moe.router.replay.trace"


@dataclass(frozen=True)
class ReplayOptions:
    trace: Optional[str] = key(None, "routing trace whose decisions are taken again; a file that eval --trace wrote")


def check_trace(options: ReplayOptions, sizes: RouterSizes) -> None:
    """Raises InputError where `options` name no trace, or one that does not fit the `sizes`."""
    if options.trace is None:
        raise InputError(f"{TRACE} is null; expected a file that pangu-sigma eval --trace wrote")
    check_fits(read_trace(options.trace, TRACE), sizes, f"{TRACE} {options.trace}")


ROUTER = RouterSpec(
    ReplayOptions,
    selection_rule="replays a trace",
    counts_undecided=True,
    whole_rows=True,
    check=check_trace,
)
