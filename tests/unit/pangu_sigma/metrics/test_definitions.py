"""Every metric that is computed is defined, and every one that is defined is computed somewhere."""

import re
from pathlib import Path

import numpy as np

from pangu_sigma.metrics.definitions import CAUSES, DEFINITIONS
from pangu_sigma.report import traces
from pangu_sigma.train import metrics

TRAIN = Path(metrics.__file__).parent
ONE = np.ones(1)


def computed():
    sums = {name: np.float64(1.0) for name in ("tokens", "task", "aux", "locality")}
    routing = {
        "assigned": np.ones((1, 2)),
        "kept": ONE,
        "kept_local": ONE,
        "undecided": ONE,
        "tokens_by_nodes": np.ones((1, 2)),
    }
    counters = metrics.HostCounters(1.0, *[metrics.Traffic()] * 4)
    return {
        **metrics.loss_metrics(sums),
        **metrics.routing_metrics({**sums, **routing}, 0.01),
        **metrics.host_metrics(counters, 1, 1.0, 1),
        **metrics.validation_metrics(sums),
        **metrics.validation_metrics(sums, "valid/local_term_off/"),
    }


def test_what_is_computed_is_defined():
    assert set(computed()) <= set(DEFINITIONS)


def test_what_is_defined_is_computed():
    """By the functions above, or by its name in a line of the loop, the capacity, the run, or what shows traces."""
    text = "".join(
        (TRAIN / f"{stem}.py").read_text(encoding="utf-8")
        for stem in ("loop", "capacity", "local_share", "run", "straggler", "divergence", "utilisation")
    )
    text += Path(traces.__file__).read_text(encoding="utf-8")
    assert set(DEFINITIONS) - set(computed()) <= set(re.findall(r'"([\w/()]+)"[\]:]', text))


def test_each_says_what_it_is():
    assert all(
        definition.meaning and definition.when and not definition.meaning.endswith(".")
        for definition in DEFINITIONS.values()
    )
    assert set(CAUSES) < set(metrics.HostCounters._fields)
