"""What several kinds of tests share: a small prepared data folder."""

import signal

import numpy as np
import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as shells start what is to run in the background; what tests start must hear it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def device():
    """Named before any test runs a graph: after that MindSpore lets nobody name one, as whole commands in this process do."""
    import mindspore as ms

    ms.set_device("CPU")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Two domains of made-up words, rows of 32 + 1 ids, prepared with a tokenizer of their own."""
    from pangu_sigma.config import config_from_dict
    from pangu_sigma.data.prepare import prepare

    folder = tmp_path_factory.mktemp("tiny")
    generator = np.random.default_rng(0)
    words = np.array(["".join(generator.choice(list("abcdefghij"), 4)) for _ in range(120)])
    sources = {}
    for domain in ("one", "two"):
        source = folder / domain
        source.mkdir()
        for number in range(12):
            (source / f"{number}.txt").write_text(" ".join(generator.choice(words, 400)))
        sources[domain] = str(source)
    prepare(config_from_dict({"model": {"sequence_length": 32}, "data": {
        "path": str(folder / "data"), "prepare": {"sources": sources, "vocab_size": 320, "validation_fraction": 0.1}}}))
    return folder / "data"
