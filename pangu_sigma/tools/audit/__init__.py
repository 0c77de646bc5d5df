"""`pangu-sigma audit`: the collectives of a compiled training step on hccl, read from its graphs before any device runs them."""
