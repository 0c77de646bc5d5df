"""Which folder compiled graphs are kept in, by `runtime.compile_cache`, the environment and the user's home."""

import os
from pathlib import Path
from typing import Mapping, Optional

from locmoe_ops.errors import InputError
from pangu_sigma.config.check_compile import AUTO, NONE
from pangu_sigma.config.schema_run import RuntimeConfig
from pangu_sigma.runtime.compile_cache.store import GraphStore
from pangu_sigma.runtime.files import make_folders
from pangu_sigma.runtime.messages import log

VARIABLE = "PANGU_SIGMA_COMPILE_CACHE"  # in place of the default folder, for all processes of a shell
_BELOW = Path("pangu_sigma", "graphs")  # the user's folder of caches


def open_store(runtime: RuntimeConfig, environment: Mapping[str, str]) -> Optional[GraphStore]:
    """Where this process keeps compiled graphs; None: nowhere.

    Args:
        runtime: resolved for this machine.
        environment: of the process.

    Raises:
        InputError: a folder that the configuration or the environment names cannot be used. Of the default folder that
            is no error.
    """
    named = runtime.compile_cache or NONE
    if named == AUTO:
        if (runtime.mode, runtime.backend) != ("graph", "tcp"):
            return None
        named = environment.get(VARIABLE) or AUTO
    if named == NONE:
        return None
    return _default_store(environment) if named == AUTO else GraphStore(Path(named))


def default_folder(environment: Mapping[str, str]) -> Optional[Path]:
    """Below the user's folder of caches, by the rules of XDG: a path that is not absolute does not count.

    Args:
        environment: of the process.

    Returns: the folder; None: the user has no such folder, and no home.
    """
    caches, home = environment.get("XDG_CACHE_HOME", ""), environment.get("HOME", "")
    if os.path.isabs(caches):
        return Path(caches) / _BELOW
    if os.path.isabs(home) and os.path.isdir(home):
        return Path(home) / ".cache" / _BELOW
    return None


def _default_store(environment: Mapping[str, str]) -> Optional[GraphStore]:
    folder = default_folder(environment)
    if folder is None:
        log.debug("runtime.compile_cache auto: neither XDG_CACHE_HOME nor HOME names a folder; no graphs are kept")
        return None
    try:
        for made in make_folders(folder):
            made.chmod(0o700)  # whoever writes graphs there decides what runs compute
        return GraphStore(folder)
    except (InputError, OSError) as error:
        log.debug("runtime.compile_cache auto: no graphs are kept: %s", error)
        return None
