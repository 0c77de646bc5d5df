"""A training step with Ascend's fused kernels compiles, backward pass included; and attention by kernel is
attention.
"""

from collections import Counter
from functools import partial

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.topology import Topology
from pangu_sigma.bench.step import random_batch
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.model.attention import AttentionCore, FlashCore, attention_mask
from pangu_sigma.model.dims import model_dims
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.train.engine import TrainEngine

WORDS = 29


@pytest.fixture
def make_config(networks):
    def make(**fused):
        return networks.small_config(
            {"hidden_size": 32, "num_heads": 2, "dense_layers": 1, "sparse_layers": 1, "attention_dropout": 0.0},
            {"dispatch": {"type": "ragged"}, "router": {"type": "switch", "top_k": 2}},
            runtime={"precision": "fp16", "device": "ascend", "fused": fused},
        )

    return make


def exported(config, folder):
    """How often each operation stands in the graph of the step."""
    from mindspore.train import mind_ir_pb2

    groups = config.moe.num_groups
    vocabulary = Vocabulary(WORDS, groups, np.ones((groups, WORDS), np.int64))
    parts = TrainEngine(config, Runtime(create_collectives("local", Topology(1, 1), 0)), vocabulary)
    (graph,) = parts.graphs(random_batch(config.train.global_batch_size, config.model.sequence_length, vocabulary))
    ms.export(graph.cell, *graph.inputs, file_name=str(folder / "step"), file_format="MINDIR")
    model = mind_ir_pb2.ModelProto()
    model.ParseFromString((folder / "step.mindir").read_bytes())
    return Counter(node.op_type.removeprefix("REF::").partition(":")[0] for node in model.graph.node)


def test_the_step_compiles_with_every_kernel(make_config, tmp_path):
    """Three attentions (dense, sparse, query layer), one layer of experts; two products forward, two a product
    backward.
    """
    found = exported(make_config(attention=True, experts=True, permute=True), tmp_path)
    assert found["FlashAttentionScore"] == found["FlashAttentionScoreGrad"] == 3
    assert found["GroupedMatmulV4"] == 6
    assert found["MoeTokenPermute"] == found["MoeTokenPermuteGrad"] == 1
    assert found["MoeTokenUnpermute"] + found["InnerMoeTokenUnpermute"] == found["MoeTokenUnpermuteGrad"] == 1
    assert found["BatchMatMul"] == 0  # no score, no product of experts; biases are of rows behind each other
    assert found["AdamWeightDecay"] > 0


def test_attention_by_kernel_is_attention(make_config):
    """Rows of two documents, whole, and with a query for each row's last token alone, as cached decoding has it. The
    kernel as MindSpore documents it: a 1 in its mask bars a key, and so does next_tokens 0 with every later one.
    """

    def kernel(query, key, value, shift, dropped, padding, barred, prefix, next_tokens=None):
        query, key, value = (one.asnumpy().astype(np.float64) for one in (query, key, value))
        barred = barred.asnumpy() > 0
        if next_tokens is not None:
            barred = barred | ~np.tri(*barred.shape[-2:], next_tokens, dtype=bool)
        scores = np.where(barred, -np.inf, query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1]))
        odds = np.exp(scores - scores.max(-1, keepdims=True))
        return None, None, None, Tensor((odds / odds.sum(-1, keepdims=True) @ value).astype(np.float32))

    def by_rows(kernel, query, key, value, *others):
        """The kernel, whose queries, keys and values lie position by position, all heads of one together."""
        split = [Tensor(one.asnumpy().reshape(2, -1, 2, 16).transpose(0, 2, 1, 3)) for one in (query, key, value)]
        mixed = kernel(*split, *others)[3].asnumpy()
        return None, None, None, Tensor(mixed.transpose(0, 2, 1, 3).reshape(2, -1, 32))

    config = make_config()
    shape, length = model_dims(config, 2, WORDS, 1), config.model.sequence_length
    rng = np.random.default_rng(0)
    query, key, value = (Tensor(rng.standard_normal((2, 2, length, 16)).astype(np.float32)) for _ in range(3))
    mask = attention_mask(Tensor(np.tile(np.arange(length) // (length // 2), (2, 1)).astype(np.int32)))
    fused = FlashCore(shape)
    assert (fused.rows.next_tokens, fused.causal.next_tokens, fused.cached.next_tokens) == (0, 0, 2147483647)
    rows_kernel = partial(kernel, next_tokens=fused.rows.next_tokens)
    fused.causal, fused.cached = partial(kernel, next_tokens=fused.causal.next_tokens), kernel
    seeds = Tensor(np.zeros(2, np.int32))
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        for rows in (slice(None), slice(-1, None)):
            asking, seen = Tensor(query.asnumpy()[:, :, rows]), Tensor(mask.asnumpy()[:, :, rows])
            found, expected = (
                core(asking, key, value, seen, seeds).asnumpy() for core in (fused, AttentionCore(shape, 0))
            )
            np.testing.assert_allclose(found, expected, atol=1e-5)  # float32: sums of at most 12 products of order 1
        fused.rows = lambda *given: by_rows(rows_kernel, *given)
        projected = [Tensor(one.asnumpy().transpose(0, 2, 1, 3).reshape(-1, 32)) for one in (query, key, value)]
        expected = AttentionCore(shape, 0)(query, key, value, mask, seeds).asnumpy()
        np.testing.assert_allclose(fused.mix_rows(*projected, mask).asnumpy(), expected, atol=1e-5)
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
