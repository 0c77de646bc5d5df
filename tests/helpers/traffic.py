"""Configurations of four ranks whose bytes are planned and counted."""

MODEL = {
    "hidden_size": 16,
    "num_heads": 2,
    "ffn_hidden_size": 24,
    "dense_layers": 0,
    "sparse_layers": 1,
    "sequence_length": 16,
    "vocab_size": 50,
}
# With the runs of layouts_worker.py, between them: flat and hierarchical dispatch, group-wise and not, and one copy a
# node; experts with a replica on the other node; domains on two of four nodes each; several micro-batches; optimizer
# state shared out, of all parameters and of dense ones alone; layers recomputed; both types of matmuls; gradients that
# travel in half precision, early and late, whole and to their stretches over both tiers. Every dispatcher:
# test_dispatch.py.
CASES = {
    "placed": {
        "moe": {
            "router": {"type": "locmoe", "top_k": 2},
            "dispatch": {"type": "node_dedup", "chunks": 2},
            "expert_placement": "node_grouped",
        },
        "data": {"placement": "domain_by_node"},
        "parallel": {"expert": 4, "ranks_per_node": 1},
    },
    "narrow, late, shared": {
        "moe": {"router": {"type": "switch"}},
        "parallel": {"expert": 2, "ranks_per_node": 2, "reduce_precision": "fp16", "overlap_gradients": False},
        "optimizer": {"warmup_steps": 1, "zero": "data_parallel"},
        "runtime": {"precision": "fp16"},
    },
}


def configuration(name):
    given = {"optimizer": {"warmup_steps": 1}, "train": {"steps": 2, "global_batch_size": 4}, **CASES[name]}
    return {
        **given,
        "model": {**MODEL, **given.get("model", {})},
        "moe": {"num_experts": 8, "num_groups": 2, **given["moe"]},
        "train": {"steps": 2, **given["train"]},
    }
