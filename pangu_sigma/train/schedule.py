"""Learning rates by step: linear warm-up, then constant, linear or cosine decay."""

import math

from pangu_sigma.config.schema_run import OptimizerConfig


def learning_rate(options: OptimizerConfig, total_steps: int, step: int) -> float:
    """Rate of optimizer step `step` (from 1). After warm-up it falls from the peak to `end_learning_rate` at
    `decay_steps` (default: `total_steps`) and stays there."""
    if step <= options.warmup_steps:
        return options.learning_rate * step / options.warmup_steps
    if options.schedule == "constant":
        return options.learning_rate
    span = max(1, (options.decay_steps or total_steps) - options.warmup_steps)
    progress = min(1.0, (step - options.warmup_steps) / span)
    left = 0.5 * (1.0 + math.cos(math.pi * progress)) if options.schedule == "cosine" else 1.0 - progress
    return options.end_learning_rate + (options.learning_rate - options.end_learning_rate) * left
