"""Routers without a model around them."""

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.router_registry import router_spec
from locmoe_ops.routers.base import RouterContext
from locmoe_ops.topology import ExpertPlacement, Topology

LAYOUT = Topology(4, 2, 4)


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
