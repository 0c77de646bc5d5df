"""Training from Python: `from pangu_sigma import train`."""

from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import validate
from pangu_sigma.report.run import Run
from pangu_sigma.runtime.launch import read_launch


def train(config: Config) -> Run:
    """Trains as `pangu-sigma train` does: on this process, or as one rank of the job that a launcher started.

    The run's folder is `train.output_dir`, which holds no run yet; with `checkpoint.resume` "auto" that run continues.
    The first rank prints what the command prints.

    Args:
        config: of `load_config`.

    Returns:
        The run, read from its folder.

    Raises:
        InputError: configuration, data, checkpoint or output folder do not fit together, or not this number of ranks.
        RunDiverged: the loss was not finite for `train.divergence_patience` steps; what there is to keep was written.
        CollectiveError: another rank was lost.
    """
    launch = read_launch()
    config = launch.fit(config)
    validate(config, launch.world_size)
    from pangu_sigma.train.run import train as run_training

    run_training(config)
    return Run(config.train.output_dir)
