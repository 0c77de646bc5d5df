"""PanGu-Sigma's network, from token ids to logits and loss."""
