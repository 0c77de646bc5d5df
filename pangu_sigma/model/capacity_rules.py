"""Which experts share a rank's tokens, and how many slots each of them gets: rules that need no MindSpore, so that a
job can be planned without it.
"""

from collections import Counter
from dataclasses import dataclass
from typing import List, NamedTuple, Optional, Set, Tuple

from locmoe_ops.capacity.factor import capacity_by_factor, copies_by_factor, share_of_tokens
from locmoe_ops.dispatch.geometry import DispatchOptions, DispatchSetup
from locmoe_ops.errors import InputError
from locmoe_ops.topology import ExpertPlacement, ExpertSubgroup, Placement, Topology, local_experts_table
from pangu_sigma.config.derived import experts_per_group, resolve_layout
from pangu_sigma.config.schema import Config
from pangu_sigma.data.domains import BY_DOMAIN, domains_of_node, resolve_domain_groups


class TierShares(NamedTuple):
    """Shares of a rank's assignments that the tiers of hierarchical dispatch have slots for; None: that of the experts
    there, as in an even spread.
    """

    near: Optional[float] = None
    far: Optional[float] = None


@dataclass(frozen=True)
class SlotRules:
    """The rules for a job.

    Attributes:
        config: its configuration. topology: its ranks. domains: number of the data's. tokens: of one rank's
            micro-batch.
    """

    config: Config
    topology: Topology
    domains: int
    tokens: int

    @property
    def layout(self) -> Topology:
        """The cluster that homes, locality and per-node statistics refer to."""
        return resolve_layout(self.config, self.topology)

    @property
    def domain_groups(self) -> Tuple[int, ...]:
        return resolve_domain_groups(self.config.moe.domain_groups, self.domains, self.config.moe.num_groups)

    @property
    def placement(self) -> ExpertPlacement:
        """Experts on the ranks that run the job."""
        moe = self.config.moe
        return ExpertPlacement(moe.num_experts, moe.num_groups, self.topology.expert, moe.expert_placement)

    def num_subgroups(self) -> int:
        """Equal subgroups of the expert-parallel group between which no token of training moves: the most that data
        and experts allow.

        1 where any token may go anywhere: with mixed data, or where rows are placed on the nodes of another cluster
        (`moe.logical_topology`).
        """
        topology, layout = self.topology, self.layout
        if self.config.data.placement not in BY_DOMAIN or (layout.nodes, layout.world_size) != (
            topology.nodes,
            topology.data,
        ):
            return 1
        position, per_rank = self.placement.position_of, self.placement.experts_per_rank
        # lowest and highest place in the group: of a node's ranks, and of the experts that their tokens may go to
        reach = []
        for node, experts in enumerate(self.experts_by_node()):
            first = node * topology.ranks_per_node
            places = {topology.ep_index(rank) for rank in range(first, first + topology.ranks_per_node)}
            places |= {int(position[expert]) // per_rank for expert in experts}
            reach.append((min(places), max(places)))
        sizes = [size for size in range(1, topology.expert + 1) if topology.expert % size == 0]
        return topology.expert // next(
            size for size in sizes if all(low // size == high // size for low, high in reach)
        )

    def exchange_of(self, rank: int) -> Placement:
        """Experts on the ranks among which `rank` exchanges tokens in training."""
        count, topology = self.num_subgroups(), self.topology
        if count == 1:
            return self.placement
        return ExpertSubgroup(self.placement, count, topology.ep_index(rank) * count // topology.expert)

    def dispatch_setup(
        self, placement: Placement, factor: float, evaluation: bool = False, bucket: int = 0
    ) -> DispatchSetup:
        """What fixes the shapes of the job's dispatchers.

        Args:
            placement: the ranks that exchange tokens, and their experts. factor: capacity factor, for dispatchers that
                have slots.
            evaluation: whether it is for evaluation, see `tier_capacities`. bucket: see there.
        """
        moe = self.config.moe
        options = DispatchOptions(
            chunks=moe.dispatch.chunks,
            group_wise=moe.dispatch.group_wise,
            drop_priority=moe.dispatch.drop_priority,
            overflow=moe.dispatch.overflow,
            ragged_limit=moe.dispatch.ragged_limit,
            fused_permute=self.config.runtime.fused.permute,
            fused_experts=self.config.runtime.fused.experts,
        )
        capacities = FactorCapacities(self, factor, evaluation, bucket)
        return DispatchSetup(self.topology, placement, self.tokens, moe.router.top_k, capacities, options)

    def experts_by_node(self) -> List[Set[int]]:
        """For each node of the layout, the experts that tokens of its ranks may go to."""
        layout, groups = self.layout, self.domain_groups
        per_group = experts_per_group(self.config)
        if self.config.data.placement not in BY_DOMAIN:  # clusters may hold text of any domain
            return [_experts_of(set(groups), per_group)] * layout.nodes
        used = [{groups[d] for d in domains_of_node(node, layout.nodes, self.domains)} for node in range(layout.nodes)]
        return [_experts_of(groups_of_node, per_group) for groups_of_node in used]

    def experts_in_play(self) -> int:
        """Experts that share a rank's tokens: all of them, or those of the fewest groups that a node's domains use."""
        return min(len(experts) for experts in self.experts_by_node())

    def far_shares(self) -> Tuple[float, ...]:
        """With `moe.capacity.measured_share` the shares of assignments that the far tier may have slots for, falling:
        that of an even spread at the node of the layout that needs most, halves of it, and 0. Where nothing may leave
        its node, 0 alone.
        """
        moe, layout = self.config.moe, self.layout
        assert moe.capacity.measured_share is not None
        placement = ExpertPlacement(moe.num_experts, moe.num_groups, layout.expert, moe.expert_placement)
        local = local_experts_table(layout, placement)[:: layout.ranks_per_node]  # (nodes, E)
        even = max(
            1.0 - sum(bool(held[expert]) for expert in experts) / len(experts)
            for held, experts in zip(local, self.experts_by_node())
        )
        halvings = moe.capacity.measured_share.buckets - 1
        return (*(even / 2**halved for halved in range(halvings)), 0.0) if even > 0.0 else (0.0,)

    def bucket_shares(self, bucket: int) -> TierShares:
        """The shares of both tiers while the far one has room for `far_shares()[bucket]`. The near tier has room for
        the most that may stay at home until the far tier shrinks, so that neither is too small for an even spread.
        """
        measured, far = self.config.moe.capacity.measured_share, self.far_shares()
        assert measured is not None
        if bucket == len(far) - 1:
            return TierShares(1.0, far[bucket])
        return TierShares(1.0 - far[bucket + 1] * (1.0 - measured.hysteresis), far[bucket])

    def tier_capacities(
        self, placement: ExpertPlacement, factor: float, evaluation: bool = False, bucket: int = 0
    ) -> Tuple[int, int]:
        """Slots per expert of the own node, and of other nodes (see `HierarchicalDispatcher`).

        `moe.capacity.local_share` of a rank's assignments spread over the experts of its node that they may go to, the
        rest over those of other nodes: the rule of capacity factors, tier by tier. All ranks get the same, that of the
        node that needs most. Where nothing may leave its node, or the share is 1, there are no slots for other nodes.

        Args:
            placement: experts on the ranks of the job. factor: capacity factor.
            evaluation: True where a local term may be switched off: no share then stays for certain, and there are
                slots for both.
            bucket: with a measured share in training, its place in `far_shares`.

        Raises InputError: the share is 1, but a node holds none of the experts that its tokens may go to.
        """
        factor = self.asked_factor(factor, evaluation)
        intra, inter = zip(
            *(self._tiers(placement, factor, shares) for shares in self._tier_shares(evaluation, bucket))
        )
        return max(intra), max(inter)

    def copies_to_a_node(
        self, placement: ExpertPlacement, factor: float, evaluation: bool = False, bucket: int = 0
    ) -> int:
        """Slots for copies of tokens to each other node, where a token travels to a node once (see
        `NodeDedupDispatcher`): `factor` times the tokens of a rank that are expected to want an expert there;
        in evaluation without rules one for each.

        That share is `moe.capacity.node_share`, or what follows from an even spread of each token's choices over the
        experts of its group, less or more as the tier between nodes has slots for less or more than an even spread.
        All ranks get the same, that of the nodes that need most; each group counts alike.

        Args:
            placement, factor, evaluation, bucket: as for `tier_capacities`.
        """
        given = self.config.moe.capacity.node_share
        if evaluation and self.config.moe.evaluation_rules == "none":
            return self.tokens
        if given is not None:
            return copies_by_factor(self.tokens, given, factor)
        shares = [self._copied_share(placement, asked.far) for asked in self._tier_shares(evaluation, bucket)]
        return copies_by_factor(self.tokens, max(shares), factor)

    def _copied_share(self, placement: ExpertPlacement, far: Optional[float]) -> float:
        """Share of a rank's tokens that want an expert of another node; the largest of any pair of nodes. far: share of
        assignments that leave their node; None: as in an even spread.
        """
        topology, top_k, per_group = self.topology, self.config.moe.router.top_k, placement.experts_per_group
        per_node = placement.num_experts // topology.group_size("ep_rail")
        local = local_experts_table(topology, placement)[:: topology.ranks_per_node]  # (nodes, E)
        in_play = self.experts_by_node()
        if len(in_play) != len(local):  # as in `_tiers`
            in_play = [set.union(*in_play)] * len(local)
        largest = 0.0
        for held, experts in zip(local, in_play):
            away = [expert for expert in experts if not held[expert]]
            scale = 1.0 if far is None or not away else far * len(experts) / len(away)
            groups = len(experts) // per_group
            there = Counter((int(placement.position_of[e]) // per_node, e // per_group) for e in away)  # by node, group
            for node in {node for node, _ in there}:
                shares = [
                    share_of_tokens(top_k, per_group, scale * count) for (to, _), count in there.items() if to == node
                ]
                largest = max(largest, sum(shares) / groups)
        return largest

    def asked_factor(self, factor: float, evaluation: bool) -> float:
        """The capacity factor `factor`, or in evaluation without rules the one that gives every token a slot."""
        without_rules = evaluation and self.config.moe.evaluation_rules == "none"
        return float(self.config.moe.num_experts) if without_rules else factor

    def _tier_shares(self, evaluation: bool, bucket: int) -> Set[TierShares]:
        """What the tiers must have room for; of several the larger slots count. See `tier_capacities`."""
        moe = self.config.moe
        if evaluation and moe.evaluation_rules == "none":
            return {TierShares()}
        if moe.capacity.measured_share is not None:
            # Whatever training measures, evaluation has one graph.
            return {TierShares(1.0, None)} if evaluation else {self.bucket_shares(bucket)}
        share = moe.capacity.local_share
        asked = TierShares() if share is None else TierShares(share, 1.0 - share)
        return {asked, TierShares()} if evaluation and moe.router.locality_bias.kind != "none" else {asked}

    def _tiers(self, placement: ExpertPlacement, factor: float, shares: TierShares) -> Tuple[int, int]:
        """See `tier_capacities`; shares None: those of the experts."""
        tokens, top_k, topology = self.tokens, self.config.moe.router.top_k, self.topology
        local = local_experts_table(topology, placement)[:: topology.ranks_per_node]  # (nodes, E)
        in_play = self.experts_by_node()
        if len(in_play) != len(local):  # a layout of another number of nodes: any of its experts from any node
            in_play = [set.union(*in_play)] * len(local)
        slots = []
        for node, (held, experts) in enumerate(zip(local, in_play)):
            here = sum(bool(held[expert]) for expert in experts)
            elsewhere = len(experts) - here
            even = here / len(experts)
            near = even if shares.near is None else shares.near
            far = 1.0 - even if shares.far is None else shares.far
            if topology.nodes == 1 and self.config.moe.capacity.measured_share is not None:
                near = 1.0  # one tier holds all
            if shares.far == 0.0 and here == 0:
                raise InputError(
                    f"moe.capacity.local_share is 1.0, but node {node} holds no expert of its tokens; expected less, "
                    "or moe.expert_placement and data.placement that put them there"
                )
            intra = capacity_by_factor(tokens, top_k, here, factor * near) if here and near > 0.0 else 0
            inter = capacity_by_factor(tokens, top_k, elsewhere, factor * far) if elsewhere and far > 0.0 else 0
            slots.append((intra, inter))
        most_intra, most_inter = (max(tier) for tier in zip(*slots))
        return (most_intra, most_intra if topology.nodes == 1 else most_inter)  # one node is one tier


@dataclass(frozen=True)
class FactorCapacities:
    """The slots that a capacity factor asks for: `locmoe_ops.dispatch.geometry.Capacities` of a job.

    Attributes:
        rules: of the job. factor: capacity factor. evaluation, bucket: see `SlotRules.tier_capacities`.
    """

    rules: SlotRules
    factor: float
    evaluation: bool = False
    bucket: int = 0

    @property
    def uniform(self) -> int:
        rules, top_k = self.rules, self.rules.config.moe.router.top_k
        factor = rules.asked_factor(self.factor, self.evaluation)
        return capacity_by_factor(rules.tokens, top_k, rules.experts_in_play(), factor)

    @property
    def tiers(self) -> Tuple[int, int]:
        return self.rules.tier_capacities(self.rules.placement, self.factor, self.evaluation, self.bucket)

    @property
    def copies(self) -> int:
        return self.rules.copies_to_a_node(self.rules.placement, self.factor, self.evaluation, self.bucket)


def _experts_of(groups: Set[int], per_group: int) -> Set[int]:
    return {group * per_group + j for group in groups for j in range(per_group)}
