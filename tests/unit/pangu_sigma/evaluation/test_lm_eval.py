"""The adapter for lm-evaluation-harness: with the library where it is installed, elsewhere with a stand-in for what it
takes of it.
"""

import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest

from pangu_sigma.evaluation.scoring import Score


class StandIn:
    """Of `lm_eval.api.model.LM` what the adapter relies on: that it can be constructed without arguments."""

    def __init__(self):
        self._rank, self._world_size = 0, 1


@pytest.fixture(scope="module")
def adapter():
    names = ("lm_eval", "lm_eval.api", "lm_eval.api.instance", "lm_eval.api.model")
    added = []
    if importlib.util.find_spec("lm_eval") is None:
        added = [name for name in names if name not in sys.modules]
        sys.modules.update({name: ModuleType(name) for name in added})
        sys.modules["lm_eval.api.model"].LM = StandIn
        sys.modules["lm_eval.api.instance"].Instance = SimpleNamespace
    yield importlib.import_module("pangu_sigma.evaluation.lm_eval")
    for name in added:
        del sys.modules[name]
    sys.modules.pop("pangu_sigma.evaluation.lm_eval", None)


class Letters:
    """A tokenizer whose ids are code points."""

    end_of_text = 0

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


class Scorer:
    """One nat an id, and a quarter more in the second domain; greedy where every id is the one after the one before."""

    length = 20

    def __init__(self):
        self.asked = []

    def score(self, requests):
        self.asked += requests
        return [
            Score(
                len(r.continuation) * (1.0 + 0.25 * r.domain),
                len(r.continuation),
                all(b == a + 1 for a, b in zip([*r.context, *r.continuation][len(r.context) - 1 :], r.continuation)),
                0,
            )
            for r in requests
        ]


TAG = 7


@pytest.fixture
def model():
    return SimpleNamespace(tokenizer=Letters(), scorer=Scorer(), tag=lambda domain: TAG + domain)


def requests(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def test_likelihoods(adapter, model):
    """Signs, order, the domain's tag before everything, and no context at all; more requests than go at once."""
    lm = adapter.PanguSigmaLM(model, domain=1)
    found = lm.loglikelihood(requests(("ab", "cde"), ("ab", "x"), ("", "q"), ("a", "")), disable_tqdm=True)
    assert found == [(-3.75, True), (-1.25, False), (-1.25, False), (0.0, True)]
    assert [r.context for r in model.scorer.asked] == [[8, 97, 98], [8, 97, 98], [8], [8, 97]]
    assert all(r.domain == 1 for r in model.scorer.asked)
    many = lm.loglikelihood(requests(*(("", "z" * n) for n in range(1, 100))), disable_tqdm=True)
    assert many == [(-1.25 * n, False) for n in range(1, 100)]
    assert lm.loglikelihood_rolling(requests(("abc",), ("x" * 40,)), disable_tqdm=True) == [-3.75, -50.0]


def test_text_is_written_up_to_a_stop_or_limit(adapter, model):
    asked = []

    def write(prompts, domains, most):
        asked.append((prompts, domains, most))
        return [model.tokenizer.encode("one. two\nthree")]

    lm = adapter.PanguSigmaLM(model, 0, write)
    contexts = ("abc", {"until": ["\n"], "max_gen_toks": 5}), ("x" * 40, {"until": "."}), ("a", {"temperature": 0.0})
    found = lm.generate_until(requests(*contexts), disable_tqdm=True)
    assert found == ["one. two", "one", "one. two\nthree"]
    assert asked[0] == ([[TAG, 97, 98, 99]], [0], 5)
    assert asked[1] == ([[TAG, *[120] * 9]], [0], 10)  # of a length of 20, half
    assert asked[2] == ([[TAG, 97]], [0], 18)
    with pytest.raises(ValueError, match="do_sample"):
        lm.generate_until(requests(("a", {"do_sample": True, "temperature": 0.7})), disable_tqdm=True)
