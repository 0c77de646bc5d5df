"""Between MindSpore's compiler and the graphs that are kept (`runtime.compile_cache`).

MindSpore (2.10) has a compile cache, but finds a graph in it by the Python files of the program and by how many graphs
were compiled before. It is therefore given a folder of this process's own, in which there is nothing but the graph that
is compiled next, if one is kept under its key.
"""

import atexit
import logging
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import mindspore as ms

try:
    from mindspore.graph import api
except ModuleNotFoundError:  # MindSpore 2.7.0: its compiler is elsewhere, and graphs are not kept
    api = None

from pangu_sigma.runtime.compile_cache.key import CACHE_VARIABLES, graph_key
from pangu_sigma.runtime.compile_cache.store import DamagedGraph, GraphStore
from pangu_sigma.runtime.messages import log
from pangu_sigma.runtime.versions import code_version

SUPPORTED = api is not None
GRAPHS = "rank_0/graph_cache"  # below its folder, where it has one process
ENABLE, FOLDER, FORCE = CACHE_VARIABLES  # the last: whatever the program's Python files are, which the key has


class CompileCache:
    """Graphs that are compiled while it is in use (`use_compile_cache`) are taken from a store, or put there.

    Args:
        store: where they are kept.
        job: what all graphs of this process depend on besides themselves: rank, topology, configuration.
        agree: whether all ranks have what this one says it has; they ask together, each for the same graph.
        tell: whether a user is shown what this process says of kept graphs; else only one who asks for debug messages.

    Attributes:
        taken, kept: how many graphs came from the store, and how many were added.
        folder: where that is.
    """

    def __init__(
        self, store: GraphStore, job: Dict[str, Any], agree: Callable[[bool], bool], tell: bool = True
    ) -> None:
        self.taken, self.kept, self.folder = 0, 0, store.folder
        self._store, self._agree, self._tell = store, agree, tell
        self._code = code_version()  # what this process runs, though files may change from now on
        self._facts = {"job": job, "code": self._code}
        self._told: set = set()

    def compile(self, compiler: Any, cell: ms.nn.Cell, inputs: Any, options: Any, phase: str, jit: Any) -> Any:
        """What `compiler.compile` of the other arguments returns.

        Args:
            compiler: MindSpore's.
            cell, inputs, options, phase, jit: what is compiled: a Cell, its positional and named inputs, and how.
        """
        cell.generate_scope()  # as the compiler does, which has nothing to do with a graph that is taken
        try:
            key = graph_key(cell, inputs, options, {**self._facts, "jit": jit})
        except Exception as error:  # `Unkeyed`, or whatever an attribute of a new kind makes of being looked at
            self._say(f"{type(cell).__name__} is not kept in runtime.compile_cache: {error}")
            return compiler.compile(cell, inputs, options, phase, jit)
        name = key.hexdigest()
        target = self._target()
        found = target is not None and self._fetch(name, target)
        if key.exchanges and not self._agree(found):
            found = False
            _PRIVATE.clear()
        if target is None:
            return compiler.compile(cell, inputs, options, phase, jit)
        try:
            with _PRIVATE.in_use():
                result = compiler.compile(cell, inputs, options, phase, jit)
            written = _PRIVATE.written()
            self.taken += found
            if written is not None and not found:
                self._keep(name, written)
            return result
        except Exception as error:  # whatever MindSpore makes of a file that it cannot use
            why = " ".join(str(error).split())[:200]
            if found:
                self._store.discard(name)
                self._say(f"a graph of runtime.compile_cache could not be used and is compiled: {why}")
            else:  # some operators cannot be written to a file; what is wrong with the Cell itself is raised below
                self._say(f"{type(cell).__name__} is not kept in runtime.compile_cache: {why}")
            return compiler.compile(cell, inputs, options, phase, jit)
        finally:
            _PRIVATE.clear()

    def _target(self) -> Optional[Path]:
        try:
            return _PRIVATE.next_graph()
        except OSError as error:  # the folder of temporary files is full, or gone
            self._say(f"no graphs are taken from runtime.compile_cache, or added to it: {error}")
            return None

    def _fetch(self, name: str, target: Path) -> bool:
        try:
            return self._store.fetch(name, target)
        except DamagedGraph as error:
            self._say(f"runtime.compile_cache: {error} is damaged and was removed; the graph is compiled")
        except OSError as error:
            _PRIVATE.clear()  # of what was written until then
            self._say(f"runtime.compile_cache: {error}; the graph is compiled")
        return False

    def _keep(self, name: str, written: Path) -> None:
        if code_version() != self._code:  # MindSpore compiles what it finds in the files now
            self._say("files of the program have changed since it started; its graphs are not kept")
            return
        self._store.keep(name, written)
        self.kept += 1

    def tell_counts(self) -> None:
        """Says how many graphs were taken and added."""
        line = "compiled graphs: %d from %s, %d added to it"
        log.log(logging.INFO if self._tell else logging.DEBUG, line, self.taken, self.folder, self.kept)

    def _say(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            log.log(logging.WARNING if self._tell else logging.DEBUG, "%s", line)


class _PrivateFolder:
    """The folder of this process that MindSpore looks for graphs in: it asks for its name once."""

    def __init__(self) -> None:
        self._folder: Optional[Path] = None
        self._compiled = 0

    def next_graph(self) -> Path:
        """The file in which MindSpore will look for the next graph; the folder is there and empty."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="pangu-sigma-graphs-"))
            atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
            os.environ[FOLDER], os.environ[FORCE] = str(self._folder), "1"
        folder = self._folder / GRAPHS
        folder.mkdir(parents=True, exist_ok=True)
        own = self._folder / f"rank_{os.environ.get('RANK_ID', '0')}"  # as MindSpore may call it, by the launcher
        if not own.exists():
            own.symlink_to(folder.parent.name)
        return folder / f"compile_cache_{self._compiled}.mindir"

    def written(self) -> Optional[Path]:
        """The graph that is there after a compilation. Its number is what MindSpore counts, whatever was counted
        here.
        """
        for path in self._files():
            number = re.search(r"_(\d+)\.mindir$", path.name)
            if number:
                self._compiled = int(number[1]) + 1
                return path
        return None

    def clear(self) -> None:
        """Removes what is there, so that MindSpore never finds a graph that is not the next one."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> List[Path]:
        return [] if self._folder is None else list((self._folder / GRAPHS).iterdir())

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """MindSpore's compile cache is on in here."""
        before = os.environ.get(ENABLE)
        os.environ[ENABLE] = "1"  # MindSpore asks again for each graph
        try:
            yield
        finally:
            self._compiled += 1
            os.environ[ENABLE] = before or "0"


_PRIVATE = _PrivateFolder()


class _Compiler:
    """MindSpore's compiler of Cells, but for `compile`."""

    def __init__(self, compiler: Any) -> None:
        self._compiler = compiler
        self.cache: Optional[CompileCache] = None

    def compile(self, cell: Any, inputs: Any, options: Any, phase: str, jit: Any) -> Any:
        if self.cache is None or "export" in phase:
            return self._compiler.compile(cell, inputs, options, phase, jit)
        return self.cache.compile(self._compiler, cell, inputs, options, phase, jit)

    def __call__(self, *arguments: Any) -> Any:
        return self._compiler(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiler, name)


def cache_in_use() -> Optional[CompileCache]:
    """What `use_compile_cache` was given last."""
    return getattr(api._cell_graph_executor._graph_executor, "cache", None) if SUPPORTED else None


def use_compile_cache(cache: Optional[CompileCache]) -> None:
    """From now on graphs of Cells are taken from this `cache`; None: from none."""
    if not SUPPORTED:
        if cache is not None:
            log.warning(
                "runtime.compile_cache: no graphs are kept with MindSpore %s; expected a newer one", ms.__version__
            )
        return
    executor = api._cell_graph_executor
    if not isinstance(executor._graph_executor, _Compiler):
        if cache is None:
            return
        executor._graph_executor = _Compiler(executor._graph_executor)
    executor._graph_executor.cache = cache
