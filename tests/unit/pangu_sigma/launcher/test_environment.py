"""What ranks on this machine are given, and what goes to the other nodes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.launcher import environment
from pangu_sigma.runtime.launch import CLUSTER_VARIABLES, RANK_VARIABLES

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(autouse=True)
def shell(monkeypatch):
    """A shell that says nothing of ranks."""
    for name in (
        *RANK_VARIABLES,
        *CLUSTER_VARIABLES,
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "GLOG_v",
        "LD_PRELOAD",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("cores, ranks, threads", [(8, 4, "2"), (8, 3, "2"), (2, 4, "1"), (1, 1, "1")])
def test_ranks_share_the_cores(monkeypatch, cores, ranks, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    found = environment.rank_environment(ranks)
    assert (found["OMP_NUM_THREADS"], found["OPENBLAS_NUM_THREADS"]) == (threads, threads)


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("GLOG_v", "1")
    found = environment.rank_environment(2)
    assert (found["OMP_NUM_THREADS"], found["OPENBLAS_NUM_THREADS"], found["GLOG_v"]) == ("7", "7", "1")


def test_what_is_left_over_of_another_job_reaches_no_rank(monkeypatch):
    for name in (*RANK_VARIABLES, *CLUSTER_VARIABLES):
        monkeypatch.setenv(name, "left over")
    found = environment.rank_environment(2)
    # msrun's ranks may be told by a rank table where the nodes are.
    assert {name for name, value in found.items() if value == "left over"} == {"RANK_TABLE_FILE"}
    environment.forget_ranks()
    assert not set(RANK_VARIABLES) & set(os.environ)


def test_ranks_run_this_python_and_this_checkout(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/other")
    found = environment.rank_environment(1)
    assert found["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert found["PYTHONPATH"] == f"{ROOT}:/other"
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:/other")  # as train_msrun.sh has it
    assert environment.rank_environment(1)["PYTHONPATH"] == f"{ROOT}:/other"


@pytest.mark.parametrize("preloaded", [None, "libc.so.6"])
def test_the_allocator_of_the_environment(monkeypatch, tmp_path, preloaded):
    """By its name alone, since LD_PRELOAD knows no folder with a blank; one of the user's stays the only one."""
    library = tmp_path / "a b" / "lib/python3.11/site-packages/cmeel.prefix/lib/libmimalloc.so"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "a b"))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    if preloaded:
        monkeypatch.setenv("LD_PRELOAD", preloaded)
    found = environment.rank_environment(1)
    expected = (preloaded, "/opt/lib") if preloaded else ("libmimalloc.so", f"{library.parent}:/opt/lib")
    assert (found["LD_PRELOAD"], found["LD_LIBRARY_PATH"]) == expected


def test_a_shell_file_sets_the_environment(monkeypatch, tmp_path, capfd):
    """What CANN's files do: they append to what may be unset, print, and export values with blanks and line ends."""
    file = tmp_path / "set env.sh"
    file.write_text(
        'echo hello\nexport A_NEW="$UNSET:x y\nz"\nunset TO_GO\nexport LD_LIBRARY_PATH=/cann:$LD_LIBRARY_PATH\n'
    )
    monkeypatch.setenv("TO_GO", "1")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr")
    monkeypatch.setenv("A_NEW", "")
    environment.read_env_file(str(file))
    assert (os.environ["A_NEW"], os.environ["LD_LIBRARY_PATH"], "TO_GO" in os.environ) == (
        ":x y\nz",
        "/cann:/usr",
        False,
    )
    assert capfd.readouterr() == ("", "hello\n")  # standard output is the job's


@pytest.mark.parametrize(
    "text, fragment", [(None, "cannot read"), ("exit 3", "ended with status 3"), ("exit 0", "ended with status 0")]
)
def test_shell_files_that_are_none(tmp_path, text, fragment):
    file = tmp_path / "set_env.sh"
    if text:
        file.write_text(text)
    before = dict(os.environ)
    with pytest.raises(InputError, match=f"--env-file: .*{fragment}"):
        environment.read_env_file(str(file))
    assert dict(os.environ) == before


def test_what_goes_to_other_nodes(monkeypatch):
    for name in [name for name in os.environ if name.startswith("HCCL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HCCL_IF_IP", "a b'c")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MS_SUBMODULE_LOG_v", "{DEVICE:1}")
    monkeypatch.setenv("LOCMOE_MESH_SECRET", "0123")
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(environment.settings_to_pass())} env"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert {"HCCL_IF_IP=a b'c", "OMP_NUM_THREADS=3", "MS_SUBMODULE_LOG_v={DEVICE:1}"} <= set(done.stdout.splitlines())
    assert "LOCMOE_MESH_SECRET" not in done.stdout and "PYTHONPATH=" in done.stdout


def test_folders_keep_the_names_by_which_the_user_called_them(monkeypatch, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "link")
    monkeypatch.setenv("PWD", str(tmp_path / "link"))
    assert environment.absolute("x/../y") == str(tmp_path / "link" / "y")
    monkeypatch.setenv("PWD", "/")  # of another program, which has changed its folder
    assert environment.absolute("y") == str(tmp_path / "real" / "y")


def test_a_dry_run_can_be_pasted_into_a_shell():
    lines = environment.shown_environment({"GLOG_v": "2", "MS_SUBMODULE_LOG_v": "{DEVICE:1}", "OTHER": "1"})
    assert [shlex.split(line.rstrip("\\"))[0] for line in lines] == ["GLOG_v=2", "MS_SUBMODULE_LOG_v={DEVICE:1}"]
