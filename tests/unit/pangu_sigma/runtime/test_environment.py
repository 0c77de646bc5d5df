"""`environment.json`: what an entry says, that none is lost, and that it holds no secret."""

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pytest

from locmoe_ops.topology import Topology
from pangu_sigma.runtime import environment
from pangu_sigma.runtime.environment import (
    add_launch,
    command_line,
    commit,
    describe_launch,
    driver_version,
    find_cann,
    launches,
    name_values,
)
from pangu_sigma.runtime.run_folder import CONFIG, ENVIRONMENT, SAVED_CONFIG, check_new, check_own
from pangu_sigma.runtime.strict_json import dumps

SECRET = "hunter2-wandb-key"


def test_an_entry_says_when_where_and_with_what(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/opt/bin/pangu-sigma", "train", "my config.yaml", "--set", "train.steps=3"])
    before = datetime.now(timezone.utc).replace(microsecond=0)
    found = describe_launch(Topology(4, 2, 2), None, "0123456789ab", 7)
    assert before <= datetime.fromisoformat(found["date"]) <= datetime.now(timezone.utc)
    assert found["unix"] == pytest.approx(before.timestamp(), abs=60)
    assert found["command"] == "pangu-sigma train 'my config.yaml' --set train.steps=3"
    assert (found["ranks"], found["nodes"], found["resumed_after_step"]) == (4, 2, 7)
    assert (found["host"], found["python"]) == (platform.node(), platform.python_version())
    assert (found["device"], found["chip"], found["cann"], found["driver"]) == ("cpu", None, None, None)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found["memory(B)"] == pytest.approx(pages, rel=0.01) and found["cpus"] == len(os.sched_getaffinity(0))
    assert found["cpu"] and found["system"] and found["folder"] == os.getcwd() and found["code"] == "0123456789ab"
    assert {"mindspore", "numpy", "psutil", "sentencepiece"} <= set(found["packages"])
    assert all(version[0].isdigit() for version in found["packages"].values())
    assert json.loads(dumps(found)) == found


def test_no_environment_variable_is_written_down(monkeypatch):
    for name in ("WANDB_API_KEY", "LOCMOE_MESH_SECRET", "HTTPS_PROXY", "ASCEND_TOKEN", "PATH_TO_KEY"):
        monkeypatch.setenv(name, SECRET)
    assert SECRET not in dumps(describe_launch(Topology(1, 1), None, "", 0))


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["/venv/bin/pangu-sigma", "train", "a.yaml"], "pangu-sigma train a.yaml"),
        (["/project/pangu_sigma/__main__.py", "train", "a b.yaml"], "pangu-sigma train 'a b.yaml'"),
        (["/home/user/study.py", "--seed", "3"], "study.py --seed 3"),
        ([""], "''"),
    ],
)
def test_the_command_is_as_one_would_type_it(words, shown):
    assert command_line(words) == shown


# ---- the file


def test_a_resumed_run_adds_its_entry(tmp_path):
    path = tmp_path / ENVIRONMENT
    (tmp_path / CONFIG).write_text(SAVED_CONFIG)
    for number in range(3):
        add_launch(path, {"host": f"node-{number}", "resumed_after_step": 10 * number})
        check_own(tmp_path)  # as a resumed run asks, which has the file to itself
    assert [one["resumed_after_step"] for one in launches(path)] == [0, 10, 20]
    assert json.loads(path.read_text())["launches"] == launches(path)


def test_entries_survive_a_disk_that_refuses(tmp_path, monkeypatch):
    path = tmp_path / ENVIRONMENT
    add_launch(path, {"host": "first"})

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError):
        add_launch(path, {"host": "second"})
    assert launches(path) == [{"host": "first"}] and [file.name for file in tmp_path.iterdir()] == [ENVIRONMENT]


@pytest.mark.parametrize(
    "text", ['{"launches": [{"host": "a"}', '{"launches": 3}', '{"launches": [1]}', '["launches"]']
)
def test_what_is_no_list_of_entries_is_set_aside(tmp_path, text, capsys):
    path = tmp_path / ENVIRONMENT
    path.write_text(text)
    add_launch(path, {"host": "b"})
    assert launches(path) == [{"host": "b"}]
    assert (tmp_path / f"{ENVIRONMENT}.aside").read_text() == text and "set aside" in capsys.readouterr().err


def test_a_file_of_others_is_in_the_way(tmp_path):
    (tmp_path / ENVIRONMENT).write_text('{"conda": "base"}')
    with pytest.raises(ValueError, match="environment.json is in the way, and no run of pangu-sigma wrote it"):
        check_new(tmp_path)


# ---- the commit


def git(folder, *words):
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", "-C", str(folder), *name, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository of one file and one commit."""
    (tmp_path / "site-packages").mkdir()
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "-m", "begin")
    return tmp_path


def test_the_commit_of_a_checkout_and_whether_it_was_changed(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    (checkout / "notes.txt").write_text("not tracked, as a run's own folder may be")
    assert commit(checkout) == {"commit": head, "changed_since_commit": False}
    (checkout / "code.py").write_text("x = 2\n")
    assert commit(checkout) == {"commit": head, "changed_since_commit": True}


def test_a_wheel_inside_another_projects_checkout_has_no_commit(checkout):
    assert commit(checkout / "site-packages") == {"commit": None, "changed_since_commit": None}


def test_without_git_there_is_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit(checkout) == {"commit": None, "changed_since_commit": None}


# ---- Ascend's software


def test_cann_and_driver_are_read_where_they_are_installed(tmp_path, monkeypatch):
    home, driver = tmp_path / "latest", tmp_path / "version.info"
    (home / "compiler").mkdir(parents=True)
    (home / "compiler" / "version.info").write_text("Version=8.2.RC1\nrequired_package=x\n")
    driver.write_text('Version="25.2.0"\npackage_version=25.2.1\n')
    monkeypatch.setattr(environment, "DRIVER_INFO", str(driver))
    assert find_cann({"ASCEND_HOME_PATH": str(home)}, name_values) == (str(home), "8.2.RC1")
    monkeypatch.setattr(environment, "CANN_HOMES", (str(tmp_path / "absent"), str(home)))
    assert find_cann({}, name_values) == (str(home), "8.2.RC1")
    assert find_cann({"ASCEND_TOOLKIT_HOME": "/absent"}, name_values) == ("/absent", "")
    assert driver_version(name_values) == "25.2.1" and driver_version(lambda path: {}) is None
    monkeypatch.setenv("ASCEND_HOME_PATH", str(home))
    found = describe_launch(Topology(8, 8, 8), "910b", "", 0)
    assert [found[name] for name in ("device", "chip", "cann", "driver")] == ["ascend", "910b", "8.2.RC1", "25.2.1"]


def test_the_processor_is_named_on_any_system(monkeypatch):
    assert environment.cpu_model()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert environment.cpu_model() == platform.machine()
