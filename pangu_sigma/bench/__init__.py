"""`pangu-sigma bench`: this machine, measured: a training step, a router, an all-to-all, decoding."""
