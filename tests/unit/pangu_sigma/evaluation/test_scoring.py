"""Scores of requests that share rows, against the NumPy model reading each of them alone."""

import numpy as np
import pytest

import mindspore as ms

from pangu_sigma.evaluation.model import without_drops
from pangu_sigma.evaluation.scoring import Scorer
from pangu_sigma.evaluation.windows import ScoreRequest
from pangu_sigma.model.dims import model_dims

LENGTH = 12  # of the small networks
# All that a domain routes by: both groups, word slots by domain; more than one expert a token; a local term that finds
# no one far away.
CASES = {
    "hash": {
        "model": {"domain_embeddings": True},
        "moe": {"router": {"type": "hash"}, "capacity": {"evaluation_factor": 0.3}},
    },
    "switch": {
        "moe": {
            "router": {"type": "switch", "top_k": 2, "locality_bias": {"kind": "margin", "strength": 1.0}},
            "logical_topology": {"world_size": 2, "ranks_per_node": 1, "expert": 2},
            "capacity": {"evaluation_factor": 0.3},
        }
    },
}


@pytest.fixture(scope="module", params=CASES)
def small(request, networks, numpy_model):
    """A network whose configuration, before `without_drops`, would drop most tokens."""
    network = networks.SmallNetwork(numpy_model, without_drops(networks.small_config(**CASES[request.param])), seed=3)
    return network, Scorer(
        network.network, model_dims(network.config, network.rows, networks.VOCABULARY, networks.DOMAINS)
    )


def requests():
    """Contexts and continuations of many lengths: some fill a row, some are cut in front, some exceed a row."""
    rng = np.random.default_rng(5)
    sizes = [
        (1, 1),
        (1, 11),
        (4, 3),
        (7, 6),
        (2, 2),
        (9, 6),
        (30, 5),
        (3, 12),
        (1, 29),
        (2, 1),
        (6, 1),
        (5, 24),
        (12, 1),
    ]
    return [
        ScoreRequest(rng.integers(0, 29, context).tolist(), rng.integers(0, 29, rest).tolist(), int(rng.integers(2)))
        for context, rest in sizes
    ]


def alone(numpy_model, double, request):
    """Nats of the continuation and whether it is what greedy decoding would give, id by id as the rule of `cut` reads
    them.
    """
    context, continuation = list(request.context), list(request.continuation)
    nats, greedy = 0.0, True
    for place, target in enumerate(continuation):
        if len(continuation) <= LENGTH:
            room = LENGTH + 1 - len(continuation)
            kept = (
                context
                if len(context) <= room
                else [context[0], *context[len(context) - (room - 1) :]]
                if room > 1
                else [context[0]]
            )
            seen = kept + continuation[:place]
        else:
            last = place // LENGTH == (len(continuation) - 1) // LENGTH
            first = len(continuation) - LENGTH if last else place // LENGTH * LENGTH
            seen = ([context[0]] + continuation)[first : place + 1]
        n = len(seen)
        batch = {
            "ids": np.array([seen]),
            "positions": np.arange(n)[None],
            "documents": np.zeros((1, n), int),
            "domain": np.array([request.domain]),
            "home": np.zeros(1, int),
        }
        logits = double.forward(batch).logits[-1:]
        nats += numpy_model.token_losses(logits, np.array([target]))[0]
        greedy &= int(logits.argmax()) == target
    return nats, greedy


def test_scores_are_those_of_each_request_alone(small, numpy_model):
    """Three rows a batch of 13 requests in 18 pieces: whatever shares a row, or a batch, is as if it did not."""
    network, scorer = small
    double = network.double(training=False)
    wanted = requests()
    found = scorer.score(wanted)
    expected = [alone(numpy_model, double, request) for request in wanted]
    # float32 rounds at 6e-8; over the nats of up to 29 tokens, a few layers deep, some tens of that remain.
    np.testing.assert_allclose([score.nats for score in found], [nats for nats, _ in expected], rtol=2e-5)
    assert [score.greedy for score in found] == [greedy for _, greedy in expected]
    assert [score.tokens for score in found] == [len(request.continuation) for request in wanted]
    assert [score.lost for score in found] == [0, 0, 0, 0, 0, 2, 22, 2, 0, 0, 0, 4, 0]


def test_a_greedy_continuation_is_known_as_one(small, numpy_model):
    """What the NumPy model writes after a context, id by id."""
    network, scorer = small
    double = network.double(training=False)
    written = []
    for _ in range(4):
        seen = [[7, 3, *written]]
        batch = {
            "ids": np.array(seen),
            "positions": np.arange(len(seen[0]))[None],
            "documents": np.zeros((1, len(seen[0])), int),
            "domain": np.array([1]),
            "home": np.zeros(1, int),
        }
        written.append(int(double.forward(batch).logits[-1].argmax()))
    other = [*written[:3], (written[3] + 1) % 29]
    assert [
        score.greedy for score in scorer.score([ScoreRequest([7, 3], written, 1), ScoreRequest([7, 3], other, 1)])
    ] == [
        True,
        False,
    ]


FAR = {"world_size": 4, "ranks_per_node": 1, "expert": 4}  # every node has one expert, of one group
# Settings under which, without `without_drops`, what a token gets depends on the others, or on where it is.
OTHERS = {
    "locmoe": {
        "router": {"type": "locmoe", "locality_bias": {"kind": "bias", "strength": 0.5}},
        "logical_topology": FAR,
    },
    "gshard": {"router": {"type": "gshard", "top_k": 2}, "dispatch": {"type": "hierarchical"}},
    "faster_moe": {
        "router": {"type": "faster_moe", "faster_moe": {"max_remote_fraction": 0.1}},
        "logical_topology": FAR,
    },
    "ta_moe": {
        "router": {"type": "ta_moe", "statistics": "node"},
        "logical_topology": FAR,
        "dispatch": {"overflow": "repick"},
    },
    "etr": {"router": {"type": "etr"}, "dispatch": {"drop_priority": "weight"}, "capacity": {"mode": "critical"}},
    "ragged": {"router": {"type": "switch"}, "dispatch": {"type": "ragged"}},
}


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_the_router_a_score_does_not_depend_on_the_batch(networks, name):
    """All requests at once, and each by itself. Not compiled: that would take longer than all else."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    config = without_drops(networks.small_config(moe=OTHERS[name]))
    network = networks.build_network(config)
    networks.randomise(network, 4)
    scorer = Scorer(network, model_dims(config, 3, networks.VOCABULARY, networks.DOMAINS))
    wanted = requests()[2:7]
    together, alone = scorer.score(wanted), [scorer.score([request])[0] for request in wanted]
    np.testing.assert_allclose(
        [score.nats for score in together], [score.nats for score in alone], rtol=1e-5
    )  # float32, other order
