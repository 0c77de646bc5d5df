"""Blocks that are alike, which MindSpore parses and differentiates once."""

from typing import Dict, List

from pangu_sigma.model.block import Block, FeedForward
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.runtime.compile_cache.key import GraphKey, Unkeyed


def share_alike_blocks(network: PanGuSigma) -> int:
    """Marks dense blocks that differ by nothing but their parameters, before the network is compiled: MindSpore's lazy
    inlining with the policy "front", one graph for all of them in the first part of the compilation.

    What tells blocks apart is all that their graphs are made of: constants, recomputation, tags of collectives. Those
    with dropout have random numbers of their own, and those of a tensor-parallel group exchanges. Blocks with experts
    are left out, as their dispatchers may change during a run.

    Args:
        network: the one to mark, when everything else has been set.

    Returns: how many blocks share a graph with another.
    """
    alike: Dict[str, List[Block]] = {}
    for block in network.all_blocks():
        key = GraphKey(named=False)
        try:
            key.add(block)
        except Unkeyed:
            continue
        if isinstance(block.feed_forward, FeedForward):
            alike.setdefault(key.hexdigest(), []).append(block)
    shared = [(name, blocks) for name, blocks in alike.items() if len(blocks) > 1]
    for name, blocks in shared:
        for block in blocks:  # what `mindspore.lazy_inline` sets, which takes constructors of equal arguments for alike
            block.cell_init_args = f"lazy_inline_Block_{name}"
            block.no_inline = False
    return sum(len(blocks) for _, blocks in shared)
