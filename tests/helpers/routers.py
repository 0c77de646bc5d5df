"""Routers without a model around them, and tokens for them."""

import numpy as np
from scipy import special

from mindspore import Tensor, nn

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.router_registry import router_spec
from locmoe_ops.routers.base import RouterContext
from locmoe_ops.topology import ExpertPlacement, Topology

TOKENS, HIDDEN = 41, 24
LAYOUT = Topology(4, 2, 4)
OUTPUTS = ("expert", "weight", "aux_loss", "locality_loss")


def context_of(name, shape, layout=LAYOUT, placement=None, collectives=None, **fields):
    """A `RouterContext` with the defaults of `name`; `fields` are its other ones, and the router's own options."""
    known = set(RouterContext.__dataclass_fields__)
    options = {field: fields.pop(field) for field in list(fields) if field not in known}
    return RouterContext(
        name,
        router_spec(name).options(**options),
        shape,
        layout,
        placement or ExpertPlacement(shape.num_experts, shape.num_groups, layout.expert),
        collectives or create_collectives("local", Topology(1, 1), 0),
        **fields,
    )


class Opened(nn.Cell):
    """A router with tensors for inputs and outputs."""

    def __init__(self, router):
        super().__init__()
        self.router = router

    def construct(self, x, group, home, seed):
        found = self.router(x, {"ids": group, "group": group, "home": home, "seed": seed})
        return found["expert"], found["weight"], found["aux_loss"], found["locality_loss"]


def batch(groups, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((TOKENS, HIDDEN)).astype(np.float32) * 2
    return [x, *(rng.integers(0, limit, TOKENS).astype(np.int32) for limit in (groups, 4, 2**31 - 1))]


def run(router, inputs):
    return dict(zip(OUTPUTS, (output.asnumpy() for output in Opened(router)(*(Tensor(array) for array in inputs)))))


def expected_choice(values, top_k):
    """Experts (ties: the lower one first) and probabilities of each row."""
    probabilities = special.softmax(values, axis=1)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return order, np.take_along_axis(probabilities, order, axis=1)
