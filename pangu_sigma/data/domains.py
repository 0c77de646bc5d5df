"""Which expert group serves a domain, and which domains' rows a node receives: neither follows from the other."""

import math
import unicodedata
from typing import Mapping, Optional, Sequence, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.config.derived import has_experts, layer_routers, router_costs, router_keys
from pangu_sigma.config.schema import Config

# Values of data.placement that place each domain on nodes of its own, and the ranks there.
BY_DOMAIN = ("domain_by_node", "domain_cluster_by_node")


def resolve_domain_groups(domain_groups: Optional[Sequence[int]], num_domains: int, num_groups: int) -> Tuple[int, ...]:
    """Group of each domain, (num_domains,).

    Args:
        domain_groups: `moe.domain_groups`; None: domain i in group i, or all in the only group.
        num_domains: of the data.
        num_groups: of the experts.

    Raises:
        InputError: `moe.domain_groups` of another length or out of range, or groups and domains differ in number and
            none given.
    """
    if domain_groups is None:
        if num_groups == 1:
            return (0,) * num_domains
        if num_domains > num_groups:
            raise InputError(
                f"moe.domain_groups: null gives each domain a group of its own, but the data has {num_domains} "
                f"domains and moe.num_groups is {num_groups}; expected one group a domain, or a list"
            )
        if num_domains < num_groups:
            raise InputError(
                f"moe.num_groups: found {num_groups}, but the data has {num_domains} domains: the other groups' "
                f"experts would never see a token; expected {num_domains}, or a list moe.domain_groups"
            )
        return tuple(range(num_domains))
    if len(domain_groups) != num_domains:
        raise InputError(
            f"moe.domain_groups: found {len(domain_groups)} entries; expected {num_domains}, one a domain of the data"
        )
    for group in domain_groups:
        if not 0 <= group < num_groups:
            raise InputError(f"moe.domain_groups: found group {group}; expected 0 to {num_groups - 1} (moe.num_groups)")
    return tuple(domain_groups)


DOMAIN_NAMES = (
    "letters and digits of any script, '-' and '_' (at most 64 characters and 200 bytes; composed, as NFC has it)"
)


def is_domain_name(name: str) -> bool:
    """Whether a domain may be called so: its name is part of file names, of a tag in the tokenizer, and of keys. See
    `DOMAIN_NAMES`.
    """
    kinds = [unicodedata.category(character)[0] for character in name]  # Letter, Mark, Number, ...
    return (
        all(kind in "LMN" or character in "-_" for kind, character in zip(kinds, name))
        and kinds[:1] not in ([], ["M"])
        and len(name) <= 64
        and len(name.encode("utf-8")) <= 200
        and unicodedata.is_normalized("NFC", name)
    )


def domain_weights(weights: Optional[Mapping[str, float]], names: Sequence[str]) -> Tuple[float, ...]:
    """Each domain's share of what is read, in the order of `names`; they add up to 1. Empty without weights.

    Args:
        weights: `data.weights`. names: of the data's domains.

    Raises InputError: a domain without a weight, or a weight of no domain.
    """
    if weights is None:
        return ()
    missing, unknown = [name for name in names if name not in weights], [name for name in weights if name not in names]
    if missing or unknown:
        wrong = f"has no weight for {', '.join(missing)}" if missing else f"has one for {', '.join(unknown)}"
        raise InputError(f"data.weights: {wrong}; expected one for each domain of the data: {', '.join(names)}")
    total = math.fsum(weights.values())
    return tuple(weights[name] / total for name in names)


def check_domains(config: Config, domains: int) -> None:
    """Raises InputError where a router's loss drives domains to different experts, and the data has but one.

    Args:
        config: of a training job. domains: of the data.
    """
    if not has_experts(config) or domains > 1:
        return
    for where, router, cost in zip(router_keys(config), layer_routers(config), router_costs(config)):
        if not cost.sums_domains:
            continue
        raise InputError(
            f"{where}.{router.type}: the divergence loss drives domains to different experts, but the data has one "
            "domain; expected divergence_loss_weight 0, or data of several (data.prepare.sources)"
        )


def domains_of_node(node: int, nodes: int, domains: int) -> Tuple[int, ...]:
    """Domains that rows of `node` may be of, ascending, where `domains` domains are placed on `nodes` nodes.

    Domains and nodes fall into as many equal zones as both can be divided into. Where that leaves several nodes and
    several domains to a zone, some domain is on more than one of them.
    """
    zones = math.gcd(domains, nodes)
    of_zone = domains // zones
    first = node * zones // nodes * of_zone
    return tuple(range(first, first + of_zone))
