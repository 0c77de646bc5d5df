"""Levels are set where the environment says nothing."""

import os

import pytest

from pangu_sigma.runtime.log_level import log_levels, set_log_level


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
