"""`pangu-sigma doctor --self-test` on one process; tests/distributed/test_self_test.py has four."""

import json

import pytest

from pangu_sigma.bench.self_test import hardware_of, of_all_ranks
from pangu_sigma.cli import main as cli
from pangu_sigma.doctor.findings import FAILURE, OK, failure, ok


def test_alone_it_tries_the_device_and_says_what_it_did_not(capsys):
    assert cli.main(["doctor", "--self-test"]) == 0
    text = capsys.readouterr().out
    for subject in ("job", "random", "overflow", "sort", "time"):
        assert f"ok   {subject}" in text
    for subject in ("fused kernel", "groups", "node link", "network"):
        assert f"skip {subject}" in text
    assert text.rstrip().endswith("5 ok, 0 to look at, 0 failed, 4 not checked")


def test_json(capsys):
    assert cli.main(["doctor", "--self-test", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [entry["subject"] for entry in found][:5] == ["job", "random", "overflow", "sort", "fused kernel"]


@pytest.mark.parametrize("option", [["--port", "2000"], ["--ssh"], ["--ranks", "4"], ["--rank-table", "x"]])
def test_what_it_does_not_use_is_refused(capsys, option):
    assert cli.main(["doctor", "--self-test", *option]) == 2
    error = capsys.readouterr().err
    assert f"{option[0]}: given with --self-test" in error and error.count("\n") == 1


def test_what_other_ranks_found_counts():
    own = [ok("random", "fine"), failure("sort", "wrong", "fix"), ok("overflow", "fine")]
    merged = of_all_ranks(own, [0, 2, 3], 8)
    assert [finding.level for finding in merged] == [OK, FAILURE, FAILURE]
    assert merged[1] is own[1] and "3 of 8 ranks" in merged[2].found


@pytest.mark.parametrize(("chip", "name"), [("910b", "Ascend 910B"), (None, "2-core CPU"), ("910c", None)])
def test_the_file_that_links_are_compared_with(chip, name):
    found = hardware_of(chip)
    assert (found and found.name) == name
