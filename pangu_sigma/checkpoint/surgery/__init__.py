"""`pangu-sigma ckpt`: checkpoints inspected, compared, cut, widened and laid out anew."""
