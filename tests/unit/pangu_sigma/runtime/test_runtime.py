"""Which folder graphs are kept in, and whom a rank asks before it takes one."""

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.runtime.compile_cache.executor import cache_in_use, use_compile_cache
from pangu_sigma.runtime.compile_cache.folder import VARIABLE
from pangu_sigma.runtime.runtime import keep_graphs


@pytest.fixture(autouse=True)
def none_before_and_after(monkeypatch):
    monkeypatch.setenv(VARIABLE, "none")
    use_compile_cache(None)
    yield
    use_compile_cache(None)


ALONE = Topology(1, 1)


def keep(topology=ALONE, mesh=None, **runtime):
    """The cache that is in use after it, for a configuration that is resolved for a CPU."""
    config = config_from_dict({"runtime": {"device": "cpu", "backend": "tcp", **runtime}})
    keep_graphs(config, topology, 0, mesh)
    return cache_in_use()


def test_the_configuration_names_the_folder_or_the_environment_does(tmp_path, monkeypatch):
    assert keep() is None
    assert keep(compile_cache=str(tmp_path / "a")).folder == tmp_path / "a"
    use_compile_cache(None)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "b"))
    assert keep().folder == tmp_path / "b"
    assert keep(compile_cache=str(tmp_path / "a")).folder == tmp_path / "a"


@pytest.mark.parametrize("runtime", [{"mode": "pynative"}, {"device": "ascend", "backend": "hccl"}])
def test_the_environment_is_for_graphs_on_cpu(tmp_path, monkeypatch, runtime):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "b"))
    assert keep(**runtime) is None and not (tmp_path / "b").exists()


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"^runtime\.compile_cache .*: cannot be written"):
        keep(compile_cache=str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


class Mesh:
    """What the other two of three ranks say, each time the same until they are told otherwise."""

    def __init__(self, *others):
        self.others = others

    def all_reduce(self, ranks, tag, array):
        assert list(ranks) == [0, 1, 2] and array.dtype == np.int64
        return array + sum(self.others)


@pytest.mark.parametrize("others, agreed", [((True, True), True), ((True, False), False), ((False, False), False)])
def test_all_ranks_have_a_graph_or_none_takes_it(tmp_path, others, agreed):
    mesh = Mesh(True, True)
    cache = keep(Topology(3, 1), mesh, compile_cache=str(tmp_path))
    mesh.others = others
    assert cache._agree(True) is agreed and cache._agree(False) is False


@pytest.mark.parametrize("home", ["home", None])
@pytest.mark.parametrize("others", [(True, True), (True, False), (False, False)])
def test_all_ranks_keep_graphs_or_none_does(tmp_path, monkeypatch, home, others):
    """By default, where a home may be missing on some nodes."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / home) if home else "")
    cache = keep(Topology(3, 1), Mesh(*others))
    if home and all(others):
        assert cache.folder == tmp_path / "home" / ".cache" / "pangu_sigma" / "graphs"
    else:
        assert cache is None
