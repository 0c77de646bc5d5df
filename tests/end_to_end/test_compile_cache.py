"""Graphs that are kept between runs: the numbers of a run that compiles all of its own, to the bit."""

import json

import numpy as np
import pytest

from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.runtime.compile_cache.executor import cache_in_use, use_compile_cache
from pangu_sigma.runtime.compile_cache.folder import VARIABLE


@pytest.fixture(scope="module", autouse=True)
def kept_graphs_of_runs():
    """None but those of a test's own folder."""
    before = cache_in_use()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "none")
        yield
    use_compile_cache(before)


def counts():
    """Graphs that the last run took from the folder, and that it added."""
    cache = cache_in_use()
    return cache.taken, cache.kept


def numbers(folder):
    """All that a run computed: its records without times, its validation, and every tensor of its checkpoint."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [
        {k: v for k, v in json.loads(line).items() if k.startswith(("loss/", "optim/", "moe/"))} for line in lines
    ]
    (path,) = (folder / "checkpoints").glob("step_6")
    with CheckpointReader.open(path) as reader:
        return records, {name: reader.read(name) for name in reader.names()}, reader.header.scalars


def assert_equal(left, right):
    for one, other in zip(numbers(left), numbers(right)):
        np.testing.assert_equal(one, other)


@pytest.fixture(scope="module")
def kept(train):
    return f"runtime.compile_cache={train.root / 'kept'}"


@pytest.fixture(scope="module")
def straight(train):
    return train("straight", "checkpoint.interval=3")


@pytest.fixture(scope="module")
def cold(train, kept, straight):
    folder = train("cold", "checkpoint.interval=3", kept)
    taken, added = counts()
    assert taken == 0 and added == len(list((train.root / "kept").iterdir())) > 1
    return folder


def test_cold_warm_and_without_are_equal_to_the_bit(train, kept, straight, cold):
    assert_equal(cold, straight)
    files = {path: path.read_bytes() for path in (train.root / "kept").iterdir()}
    warm = train("warm", "checkpoint.interval=3", kept)
    assert counts() == (len(files), 0)
    assert_equal(warm, straight)
    assert {path: path.read_bytes() for path in (train.root / "kept").iterdir()} == files


def test_a_resumed_run_takes_the_same_graphs(train, kept, straight, cold):
    resumed = train("resumed", "checkpoint.interval=3", kept, f"checkpoint.resume={cold}/checkpoints/step_3")
    taken, added = counts()
    assert taken > 1 and added == 0
    assert numbers(resumed)[1].keys() == numbers(straight)[1].keys()
    np.testing.assert_equal(numbers(resumed)[1:], numbers(straight)[1:])


def test_a_run_with_another_learning_rate_takes_the_same_graphs(train, kept, straight, cold):
    """Which are given the rate of each step: equal losses until an update by another rate has been made."""
    rates = ("optimizer.learning_rate=0.02", "optimizer.warmup_steps=0", "optimizer.schedule=linear")
    other = train("another rate", "checkpoint.interval=6", kept, *rates)
    assert counts()[0] > 1 and counts()[1] == 0
    found, expected = ([record["loss/total"] for record in numbers(folder)[0]] for folder in (other, straight))
    assert found[0] == expected[0] and set(found[1:]).isdisjoint(expected[1:])


def test_another_run_takes_none_of_them(train, kept, cold):
    """That differs by a number of its router alone. What else tells graphs apart: the unit tests of the key."""
    options = ("checkpoint.interval=6", "train.eval_rows=0", "moe.router.switch.jitter=0.3")
    with_folder = train("jitter kept", kept, *options)
    assert counts()[1] > 0
    assert_equal(with_folder, train("jitter alone", *options))


def test_a_damaged_graph_is_compiled_and_told(train, kept, straight, cold, capfd):
    files = sorted((train.root / "kept").iterdir())
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    again = train("damaged", "checkpoint.interval=3", kept)
    assert counts()[0] == 0
    assert "is damaged and was removed; the graph is compiled" in capfd.readouterr().err
    assert_equal(again, straight)


def test_by_default_the_users_folder_of_caches_has_them(train, straight, tmp_path, monkeypatch, capfd):
    """Without a word; nor is there one of graphs that are damaged."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "pangu_sigma" / "graphs"
    assert_equal(train("default cold", "checkpoint.interval=3"), straight)
    files = sorted(folder.iterdir())
    assert counts() == (0, len(files)) and len(files) > 1
    assert_equal(train("default warm", "checkpoint.interval=3"), straight)
    assert counts() == (len(files), 0)
    for path in files:
        path.write_bytes(path.read_bytes()[:-100])
    assert_equal(train("default damaged", "checkpoint.interval=3"), straight)
    assert counts() == (0, len(files)) and sorted(folder.iterdir()) == files
    printed = "".join(capfd.readouterr())
    assert "compiled graphs" not in printed and "compile_cache" not in printed
