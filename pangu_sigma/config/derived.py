"""What follows from the keys of a configuration, each rule once."""

from pangu_sigma.config.schema import Config


def rows_per_rank(config: Config, world_size: int) -> int:
    """Rows of a micro-batch on each rank."""
    return config.train.micro_batch_size or config.train.global_batch_size // (world_size // config.parallel.tensor)
