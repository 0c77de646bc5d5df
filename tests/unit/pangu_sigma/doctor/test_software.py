"""The doctor on Python, NumPy and MindSpore: its limits are those of setup.py, and what fails is told with its fix."""

import re
from pathlib import Path

import pytest

from pangu_sigma.doctor import software as doctor_software
from pangu_sigma.doctor.findings import FAILURE, OK, WARNING
from pangu_sigma.doctor.machine import Machine, Ran

SETUP = (Path(__file__).resolve().parents[4] / "setup.py").read_text()
GOOD = {"numpy": "1.26.4", "mindspore": "2.10.0"}
WORKS = Ran(0)


def levels(python=(3, 11, 4), versions=None, ran=WORKS):
    found = {**GOOD, **(versions or {})}
    findings = doctor_software.check_software(Machine(), lambda: ran, found.get, python)
    return [finding.level for finding in findings], findings


def test_limits_are_those_of_the_package():
    ((low, high),) = re.findall(r'"mindspore>=(\d+\.\d+),<(\d+\.\d+)"', SETUP)
    assert [tuple(map(int, text.split("."))) for text in (low, high)] == list(doctor_software.MINDSPORES)
    assert '"numpy<2"' in SETUP and doctor_software.NUMPY_END == (2, 0)
    (python,) = re.findall(r'python_requires=">=(\d+\.\d+)"', SETUP)
    assert tuple(map(int, python.split("."))) == doctor_software.PYTHONS[0]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, [OK, OK, OK]),
        ({"python": (3, 8, 10)}, [FAILURE, OK, OK]),
        ({"python": (3, 9, 0)}, [OK, OK, OK]),
        ({"python": (3, 13, 0)}, [FAILURE, OK, OK]),
        ({"versions": {"numpy": "2.4.0"}}, [OK, FAILURE, OK]),
        ({"versions": {"numpy": None}}, [OK, FAILURE, OK]),
        ({"versions": {"mindspore": None}}, [OK, OK, FAILURE]),
        ({"versions": {"mindspore": "2.6.0"}}, [OK, OK, FAILURE]),
        ({"versions": {"mindspore": "2.7.0rc1"}}, [OK, OK, OK]),
        ({"versions": {"mindspore": "2.11.0"}}, [OK, OK, FAILURE]),
        ({"ran": Ran(1, "", "Traceback\nSystemError: no\n")}, [OK, OK, FAILURE]),
        ({"ran": Ran(-11)}, [OK, OK, FAILURE]),
        ({"ran": Ran(None, "", "no answer within 90 s")}, [OK, OK, WARNING]),
    ],
)
def test_levels(changed, expected):
    found, findings = levels(**changed)
    assert found == expected
    assert all(finding.fix for finding in findings if finding.level != OK)


def test_the_reason_is_shown():
    _, findings = levels(ran=Ran(1, "", "Traceback\nSystemError: no\n"))
    assert "2.10.0 does not work: SystemError: no" in findings[2].found


def test_mindspore_is_really_tried():
    assert doctor_software.try_mindspore(Machine()).status == 0
    broken = Machine(run=lambda words, seconds: Ran(1 if "11.0" in words[2] else 0))
    assert doctor_software.try_mindspore(broken).status == 1


@pytest.mark.parametrize(
    ("text", "expected"), [("8.2.RC1", (8, 2)), ("25.3.rc1.2", (25, 3)), ("1.26.4", (1, 26, 4)), ("", ()), ("rc1", ())]
)
def test_numbers_of_versions(text, expected):
    assert doctor_software.numbers(text) == expected
