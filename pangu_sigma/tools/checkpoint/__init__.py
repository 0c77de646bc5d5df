"""`pangu-sigma ckpt`: looking at checkpoints, and making one out of another."""
