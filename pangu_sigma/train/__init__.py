"""Training: the compiled step, the loop around it, checkpoints and metrics.

`from pangu_sigma import train` gives this package, which can be called: `train(config)` is
`pangu_sigma.train.job.train`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pangu_sigma.config.schema import Config
    from pangu_sigma.report.run import Run


class _Callable(ModuleType):
    """A module of a class of its own, as Python's data model has it ("Customizing module attribute access")."""

    def __call__(self, config: "Config") -> "Run":
        from pangu_sigma.train.job import train

        return train(config)


_Callable.__call__.__doc__ = "Trains as configured, see `pangu_sigma.train.job.train`."
sys.modules[__name__].__class__ = _Callable
