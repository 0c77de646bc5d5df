"""Folders of logs: none is lost, none is left that has nothing to show."""

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.launcher.log_folder import LogFolder


def folder(tmp_path, given=None, node=""):
    return LogFolder(str(tmp_path / "run"), given, node)


def test_one_a_launch(tmp_path):
    for number in (1, 2):
        logs = folder(tmp_path)
        logs.make()
        assert logs.path == tmp_path / "run" / "logs" / f"launch_{number}"


def test_nodes_that_share_a_file_system_find_the_same(tmp_path):
    first, second = (folder(tmp_path, node=f"node_{node}") for node in (0, 1))
    first.make()
    second.make()
    assert {first.path.parent, second.path.parent} == {tmp_path / "run" / "logs" / "launch_1"}
    assert folder(tmp_path, node="node_0").path.parent.name == "launch_2"
    assert folder(tmp_path).path.name == "launch_2"


def test_one_that_another_launch_was_quicker_to_make(tmp_path):
    first, second = folder(tmp_path), folder(tmp_path)
    assert first.path == second.path
    first.make()
    second.make()
    assert second.path.name == "launch_2"


@pytest.mark.parametrize("name", ["errors.log", "worker_0.log", "msrun.log"])
def test_a_given_folder_holds_no_other_launch(tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").touch()
    folder(tmp_path, str(tmp_path / "mine")).make()
    (tmp_path / "mine" / name).touch()
    with pytest.raises(InputError, match=f"--log-dir: .*mine holds {name} already"):
        folder(tmp_path, str(tmp_path / "mine")).make()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot make the log folder .*file/logs; expected a writable place"):
        folder(tmp_path, str(tmp_path / "file" / "logs")).make()


@pytest.mark.parametrize("shown", [b"", b"rank 0\n"])
@pytest.mark.parametrize("node", ["", "node_1"])
def test_what_has_nothing_to_show_is_removed(tmp_path, shown, node):
    """As far up as it was made: what was there before stays."""
    (tmp_path / "run").mkdir()
    logs = folder(tmp_path, node=node)
    logs.make()
    for name in ("errors.log", "workers.log", "worker_3.log", "rank_2.log"):
        (logs.path / name).write_text("x")
    logs.log_of(2).write_bytes(shown)
    logs.remove_if_empty(2)
    assert sorted(tmp_path.rglob("*.log")) == ([] if not shown else sorted(logs.path.glob("*.log")))
    assert (tmp_path / "run").is_dir() and (tmp_path / "run" / "logs").exists() == bool(shown)


def test_what_is_of_somebody_else_stays(tmp_path):
    logs = folder(tmp_path)
    logs.make()
    (logs.path / "note.txt").write_text("mine")
    logs.remove_if_empty(0)
    assert (logs.path / "note.txt").read_text() == "mine"


def test_every_log_ends_with_its_own_line_or_why_it_has_none(tmp_path):
    logs = folder(tmp_path)
    logs.make()
    (logs.path / "errors.log").write_text("1\t2\tpangu-sigma: error: data: gone\n1\t1\tpangu-sigma: error: later\n")
    (logs.path / "workers.log").write_text("0\t17\n1\t18\n")
    logs.log_of(0).write_bytes(b"step 3\r 10 %")  # a progress bar leaves its line open
    logs.log_of(1).write_bytes(b"")
    assert logs.processes() == {0: 17, 1: 18}
    assert logs.failures()[0] == ("1", 2, "pangu-sigma: error: data: gone")
    logs.complete(range(3), "data: gone")
    own = "pangu-sigma: error: rank 0: ended without a report of its own; first failure: data: gone\n"
    assert logs.log_of(0).read_bytes() == b"step 3\r 10 %\n" + own.encode()
    assert logs.log_of(1).read_text() == "pangu-sigma: error: data: gone\n"
    assert not logs.log_of(2).exists()
