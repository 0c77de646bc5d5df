"""A routing trace: which experts every token was sent to in each sparse layer, with which weights, as one safetensors
file. The router `replay` takes the same decisions again, the benchmarks send real loads by it, and
`pangu_sigma.metrics.agreement` compares two of them.

Shape legend: R rows of text, S tokens of a row, M sparse layers, k experts a token, E experts.
"""

import json
import math
import os
from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Tuple

import numpy as np

from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import RouterSizes

FORMAT, VERSION = "pangu-sigma routing trace", "1"
ROWS = ("validation", "training")  # prepared rows that a trace can be of
MOST_TOKENS = 65_536  # of a trace, where nothing else is asked for
MARKER = f'"format":"{FORMAT}"'.encode()  # in the first bytes of the file
_KINDS = {
    "token": (np.int32, "RS"),
    "domain": (np.int32, "R"),
    "home": (np.int32, "R"),
    "expert": (np.int32, "MRSk"),
    "weight": (np.float32, "MRSk"),
    "node": (np.int32, "E"),
}  # tensors, with the letters of their shapes


@dataclass(frozen=True)
class RoutingTrace:
    """The decisions of the routers for some rows of text, before drops.

    Attributes:
        token: <int32>[R, S], ids. domain: <int32>[R]. home: <int32>[R], the rank of the layout that a row belongs to.
        expert: <int32>[M, R, S, k], global ids, the best first; E where a choice was not taken up.
        weight: <float32>[M, R, S, k], the router's weights of these.
        node: <int32>[E], the node of the layout that each expert is on; one number for all where it is not known.
        num_groups: expert groups.
        domains: names of the domains, by number.
        source: what was traced, by name: checkpoint, step, router, rows.
    """

    token: np.ndarray
    domain: np.ndarray
    home: np.ndarray
    expert: np.ndarray
    weight: np.ndarray
    node: np.ndarray
    num_groups: int = 1
    domains: Tuple[str, ...] = ()
    source: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.token)

    @property
    def length(self) -> int:
        return int(self.token.shape[1])

    @property
    def layers(self) -> int:
        return len(self.expert)

    @property
    def top_k(self) -> int:
        return int(self.expert.shape[-1])

    @property
    def num_experts(self) -> int:
        return len(self.node)


def bytes_a_token(layers: int, top_k: int) -> int:
    """What a trace takes for each token: id, and expert and weight of `top_k` choices in each of `layers`."""
    return 4 + 8 * layers * top_k


def to_bytes(trace: RoutingTrace) -> bytes:
    """The file's content."""
    from safetensors.numpy import save  # MindSpore brings it along

    about = {
        "format": FORMAT,
        "version": VERSION,
        "num_groups": str(trace.num_groups),
        "domains": json.dumps(list(trace.domains)),
        **{f"source.{name}": value for name, value in trace.source.items()},
    }
    tensors = {name: np.ascontiguousarray(getattr(trace, name), kind) for name, (kind, _) in _KINDS.items()}
    return bytes(save(tensors, about))


def read_trace(path: str, what: str) -> RoutingTrace:
    """The trace that a file holds.

    Args:
        path: of the file. what: the option or key that names it, for messages.

    Raises:
        InputError: the file cannot be read, is no trace, or holds numbers that no trace has.
    """
    where = f"{what} {path}"
    found, about = _tensors(path, where)
    if about.get("format") != FORMAT or about.get("version") != VERSION or set(found) != set(_KINDS):
        raise InputError(f"{where}: is no routing trace of version {VERSION}; expected a file that eval --trace wrote")
    sizes: Dict[str, int] = {}
    for name, (kind, letters) in _KINDS.items():
        array = found[name]
        if array.dtype != kind or array.ndim != len(letters) or not array.size:
            raise InputError(
                f"{where}: {name} is {array.dtype} of shape {array.shape}; expected {np.dtype(kind)} of {len(letters)} "
                "dimensions, none of them empty"
            )
        for letter, size in zip(letters, array.shape):
            if sizes.setdefault(letter, size) != size:
                raise InputError(f"{where}: {name} has shape {array.shape}, which does not fit the other tensors")
    try:
        groups, domains = int(about["num_groups"]), tuple(map(str, json.loads(about["domains"])))
    except (KeyError, ValueError, TypeError):
        raise InputError(f"{where}: its num_groups and domains cannot be read; expected a whole trace") from None
    source = {name.partition(".")[2]: value for name, value in about.items() if name.startswith("source.")}
    trace = RoutingTrace(**found, num_groups=groups, domains=domains, source=source)
    _check_numbers(trace, where)
    return trace


def _tensors(path: str, where: str) -> Tuple[Dict[str, np.ndarray], Dict[str, str]]:
    """All tensors of a safetensors file, and its metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb"):  # whose errors are Python's own
            pass
        with safe_open(path, framework="numpy") as file:
            about: Dict[str, str] = file.metadata() or {}
            known = about.get("format") == FORMAT  # of another file the tensors may be many gigabytes
            return {name: file.get_tensor(name) for name in file.keys()} if known else {}, about
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{where}: cannot be read ({reason}); expected a file that eval --trace wrote") from None
    except (SafetensorError, TypeError, KeyError):
        raise InputError(f"{where}: is no whole safetensors file; expected a file that eval --trace wrote") from None


def _check_numbers(trace: RoutingTrace, where: str) -> None:
    experts = trace.num_experts
    limits = {"expert": experts, "domain": max(len(trace.domains) - 1, 0), "token": None, "node": None}
    for name, most in limits.items():
        array = getattr(trace, name)
        if array.min() < 0 or (most is not None and array.max() > most):
            limit = "of at least 0" if most is None else f"from 0 to {most}"
            raise InputError(
                f"{where}: {name} holds numbers from {array.min()} to {array.max()}; expected numbers {limit}"
            )
    if trace.num_groups < 1 or experts % trace.num_groups:
        raise InputError(f"{where}: {trace.num_groups} groups do not divide {experts} experts; expected a divisor")


def check_fits(trace: RoutingTrace, sizes: RouterSizes, where: str) -> None:
    """Raises InputError where a trace is of another network.

    Args:
        trace: that is to be used. sizes: of the network; what is None there is not compared.
        where: key or option and path, for the message.
    """
    for key, found, expected in (
        ("moe.num_experts", trace.num_experts, sizes.num_experts),
        ("moe.router.top_k", trace.top_k, sizes.top_k),
        ("sparse layers", trace.layers, sizes.sparse_layers),
        ("model.sequence_length", trace.length, sizes.sequence_length),
    ):
        if expected is not None and found != expected:
            raise InputError(f"{where}: was written with {key} {found}; expected {expected}, as configured")


def matching_rows(first: RoutingTrace, second: RoutingTrace) -> Tuple[np.ndarray, np.ndarray]:
    """Rows of the same ids and the same domain's name in two traces: their numbers in each, <int64>[n] both. Of several
    alike rows the first stands for all.
    """

    def keys(trace: RoutingTrace) -> Dict[Any, int]:
        found: Dict[Any, int] = {}
        for number, (row, domain) in enumerate(zip(trace.token, trace.domain)):
            name = trace.domains[domain] if trace.domains else int(domain)
            found.setdefault((row.tobytes(), name), number)
        return found

    of_first, of_second = keys(first), keys(second)
    common = [key for key in of_first if key in of_second]
    return (
        np.array([of_first[key] for key in common], np.int64),
        np.array([of_second[key] for key in common], np.int64),
    )


def size_text(trace: RoutingTrace) -> str:
    """How large a trace is, in words."""
    count = math.prod(trace.token.shape)
    return f"{count:,} tokens in {trace.rows:,} rows, {trace.layers} sparse layers, {trace.top_k} experts a token"


def file_name(path: str) -> str:
    """The last part of a path, for tables."""
    return os.path.basename(path)
