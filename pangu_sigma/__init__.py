"""PanGu-Sigma with LocMoE routing, for MindSpore.

    from pangu_sigma import Generator, evaluate, load_config, prepare, train

What stands below is imported when it is first asked for: `import pangu_sigma` alone imports nothing else. See
`pangu_sigma.api` and docs/python.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from locmoe_ops.errors import InputError
    from pangu_sigma.api import evaluate, load_config, prepare
    from pangu_sigma.config.schema import Config
    from pangu_sigma.inference.generator import Generator
    from pangu_sigma.inference.sampling import SamplingSettings
    from pangu_sigma.report.run import Run
    from pangu_sigma.train.job import train

__version__ = "0.1.0"
__all__ = [
    "Config",
    "Generator",
    "InputError",
    "Run",
    "SamplingSettings",
    "evaluate",
    "load_config",
    "prepare",
    "train",
]
_HOMES = {
    "Config": "pangu_sigma.config.schema",
    "Generator": "pangu_sigma.inference.generator",
    "InputError": "locmoe_ops.errors",
    "Run": "pangu_sigma.report.run",
    "SamplingSettings": "pangu_sigma.inference.sampling",
    "evaluate": "pangu_sigma.api",
    "load_config": "pangu_sigma.api",
    "prepare": "pangu_sigma.api",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for, with MindSpore's log level set before (PEP 562)."""
    if name != "train" and name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("pangu_sigma.api").quieten()
    if name == "train":  # a package of this name stands here, and whoever imports from it sets the attribute: it is
        return import_module("pangu_sigma.train")  # the same object either way, and can be called
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
