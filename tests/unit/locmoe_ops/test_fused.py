"""Fused kernels take part as what they replace does. No CPU runs them, so NumPy does what MindSpore documents of
them.
"""

import numpy as np
import pytest

import mindspore as ms
from mindspore import Tensor, nn, ops

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.dispatch.geometry import DispatchOptions, DispatchSetup
from locmoe_ops.dispatch.ragged import FusedRaggedDispatcher, RaggedDispatcher
from locmoe_ops.experts import ExpertBank, ExpertKernels
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


class Grouped(nn.Cell):
    """GroupedMatmul as CANN documents it: rows beyond the groups are left as their memory was found, here NaN, in the
    gradient too.
    """

    def construct(self, x, weight, sizes):
        return self.rows(x, weight, sizes)

    def bprop(self, x, weight, sizes, out, dout):
        parts = self.parts(sizes)
        of_weight = [x.asnumpy()[part].T @ dout.asnumpy()[part] for part in parts]
        of_x = self.rows(dout, Tensor(weight.asnumpy().transpose(0, 2, 1)), sizes)
        return of_x, Tensor(np.stack(of_weight)), ops.zeros_like(sizes)

    def parts(self, sizes):
        ends = np.cumsum(sizes.asnumpy())
        return [slice(end - size, end) for end, size in zip(ends, sizes.asnumpy())]

    def rows(self, x, weight, sizes):
        found = np.full((len(x), weight.shape[2]), np.nan, np.float32)
        for part, matrix in zip(self.parts(sizes), weight.asnumpy()):
            found[part] = x.asnumpy()[part] @ matrix
        return Tensor(found)


@pytest.mark.parametrize("top_k", [1, 2])
def test_experts_on_the_rows_that_arrived_give_what_regions_give(top_k):
    """Outputs and all gradients; tokens without an expert, hence rows that are nobody's; an expert without rows."""
    rng = np.random.default_rng(top_k)
    choices = np.tile([0, 2, 3, 4, 5, EXPERTS], (TOKENS, 1))
    expert = Tensor(rng.permuted(choices, axis=1)[:, :top_k].astype(np.int32))
    x, dy = (Tensor(rng.standard_normal((TOKENS, WIDTH)).astype(np.float32)) for _ in range(2))
    weight = Tensor(rng.uniform(size=(TOKENS, top_k)).astype(np.float32) * (expert.asnumpy() < EXPERTS))
    topology, found = Topology(1, 1), []
    for fused in (False, True):
        options = DispatchOptions(fused_experts=fused)
        setup = DispatchSetup(topology, ExpertPlacement(EXPERTS, 3, 1), TOKENS, top_k, options=options)
        dispatcher = RaggedDispatcher(create_collectives("local", topology, 0), setup, "t")
        experts = ExpertBank(tuple(range(EXPERTS)), WIDTH, 7, kernels=ExpertKernels(fused=fused))
        for parameter in experts.trainable_params():  # the same in both, biases too
            parameter.set_data(Tensor(np.random.default_rng(9).standard_normal(parameter.shape).astype(np.float32)))
        if fused:
            experts.row_product.product = Grouped()

        def objective(x, weight, dispatcher=dispatcher, experts=experts):
            return (dispatcher.forward(x, expert, weight, weight, experts)[0] * dy).sum()

        value, (of_inputs, of_parameters) = ms.value_and_grad(objective, (0, 1), experts.trainable_params())(x, weight)
        found.append([value.asnumpy(), *(one.asnumpy() for one in (*of_inputs, *of_parameters))])
    for ours, expected in zip(*found):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)  # float32, sums of 17 to 119 products


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
    product.product.product = grouped
    np.testing.assert_allclose(
        product(x, weight).asnumpy(), ops.BatchMatMul()(x, weight).asnumpy(), rtol=1e-5, atol=1e-6
    )
