"""Fused kernels take part as what they replace does. No CPU runs them, so NumPy does what MindSpore documents of
them.
"""

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor, ops

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.dispatch.geometry import DispatchSetup
from locmoe_ops.dispatch.ragged import FusedRaggedDispatcher, RaggedDispatcher
from locmoe_ops.fused import GroupedProduct
from locmoe_ops.topology import ExpertPlacement, Topology

TOKENS, WIDTH, EXPERTS = 17, 5, 6


@pytest.fixture(autouse=True)
def operation_by_operation():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


def permute(tokens, place):
    """Copies in the order of places, and where each token's copies went."""
    flat = place.asnumpy().reshape(-1)
    order = flat.argsort(kind="stable")
    return Tensor(tokens.asnumpy()[order // place.shape[1]]), Tensor(order.argsort().astype(np.int32))


def unpermute(rows, where, scale):
    found = rows.asnumpy()[where.asnumpy()].reshape(*scale.shape, -1)
    return Tensor((found * scale.asnumpy()[..., None]).sum(1))


@pytest.mark.parametrize("top_k", [1, 2])
def test_sorting_by_kernel_changes_no_result(top_k):
    """Experts interleaved over three groups, so that places differ from ids; some tokens go nowhere."""
    rng = np.random.default_rng(top_k)
    expert = rng.permuted(np.tile(np.arange(EXPERTS + 1), (TOKENS, 1)), axis=1)[:, :top_k].astype(np.int32)
    x = Tensor(rng.standard_normal((TOKENS, WIDTH)).astype(np.float32))
    weight = Tensor(rng.uniform(size=(TOKENS, top_k)).astype(np.float32) * (expert < EXPERTS))
    factor = Tensor(np.arange(1.0, EXPERTS + 1, dtype=np.float32).reshape(-1, 1, 1))
    topology = Topology(1, 1)
    setup = DispatchSetup(topology, ExpertPlacement(EXPERTS, 3, 1), TOKENS, top_k)
    given = create_collectives("local", topology, 0), setup, "t"
    plain, fused = RaggedDispatcher(*given), FusedRaggedDispatcher(*given)
    fused.sort.permute, fused.unsort.unpermute = permute, unpermute
    (y, context), (expected, reference) = (
        d.forward(x, Tensor(expert), weight, weight, lambda rows: rows * factor) for d in (fused, plain)
    )
    np.testing.assert_allclose(y.asnumpy(), expected.asnumpy(), rtol=1e-6)  # two terms, in either order
    np.testing.assert_array_equal(context["keep_mask"].asnumpy(), reference["keep_mask"].asnumpy())


def test_a_grouped_product_is_a_batched_one():
    def grouped(x, weight, *rest):
        (sizes,) = [one for one in rest if isinstance(one, Tensor)]
        assert rest[-4:] == (3, 0, 1, 0)  # one output; groups of rows; given by size; no activation
        ends = np.cumsum(sizes.asnumpy())
        parts = np.split(x[0].asnumpy(), ends[:-1])
        return [Tensor(np.concatenate([part @ own for part, own in zip(parts, weight[0].asnumpy())]))]

    rng = np.random.default_rng(0)
    x, weight = (Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in ((3, 4, 5), (3, 5, 2)))
    product = GroupedProduct()
    product.product = grouped
    np.testing.assert_allclose(
        product(x, weight).asnumpy(), ops.BatchMatMul()(x, weight).asnumpy(), rtol=1e-5, atol=1e-6
    )
