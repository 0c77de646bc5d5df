"""Levels are set where the environment says nothing, and the launchers say the same to msrun."""

import os
import re
from pathlib import Path

import pytest

from pangu_sigma.runtime.log_level import DEVICE_MODULE, log_levels, set_log_level

JOB = Path(__file__).resolve().parents[4] / "scripts" / "job.sh"


@pytest.mark.parametrize(
    ("on_device", "expected"), [(False, {"GLOG_v": "3"}), (True, {"GLOG_v": "2", "MS_SUBMODULE_LOG_v": "{DEVICE:1}"})]
)
def test_what_is_set(monkeypatch, on_device, expected):
    for name in ("GLOG_v", "MS_SUBMODULE_LOG_v"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    set_log_level(on_device)
    assert {name: os.environ[name] for name in expected} == expected == dict(log_levels(on_device))
    monkeypatch.setenv("GLOG_v", "0")
    set_log_level(on_device)
    assert os.environ["GLOG_v"] == "0"


def test_the_launchers_set_the_same():
    text = JOB.read_text()
    assert f"local of_device='{DEVICE_MODULE}'" in text
    assert re.findall(r"GLOG_v:-(\d)", text) == [log_levels(True)["GLOG_v"], log_levels(False)["GLOG_v"]]
