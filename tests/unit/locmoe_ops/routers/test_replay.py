"""The router that replays a trace, compiled, against a dictionary of the trace's rows."""

from dataclasses import replace

import numpy as np
import pytest

from mindspore import Tensor

from helpers.traces import made_up_trace
from locmoe_ops.errors import InputError
from locmoe_ops.reference.replay import replay
from locmoe_ops.router_registry import RouterSizes
from locmoe_ops.routers.base import RoutingShape
from locmoe_ops.routers.replay import ReplayRouter
from locmoe_ops.routers.specs.replay import ReplayOptions, check_trace
from locmoe_ops.routing_trace import to_bytes

TRACE = made_up_trace(rows=6, groups=2)
SHAPE = RoutingShape(4, 8, 2, top_k=2)
# Rows of the trace in another order, one twice; row 0 with one id changed, row 1 as of the other domain.
ROWS = [4, 0, 4, 1, 5, 0, 1]


def tokens():
    token, domain = TRACE.token[ROWS].copy(), TRACE.domain[ROWS].copy()
    token[5, 3] += 1
    domain[6] = 1 - domain[6]
    given = {"ids": token.reshape(-1), "domain": np.repeat(domain, TRACE.length)}
    return {**given, "group": given["domain"], "home": 0 * given["ids"], "seed": 0 * given["ids"]}


@pytest.mark.usefixtures("graph_mode")
def test_what_the_trace_holds_comes_back_to_the_bit():
    given = tokens()
    count = len(given["ids"])
    found = ReplayRouter(SHAPE, TRACE, 1)(
        Tensor(np.zeros((count, 4), np.float32)), {n: Tensor(a.astype(np.int32)) for n, a in given.items()}
    )
    expected = replay(TRACE, 1, given["ids"], given["domain"], given["group"])
    np.testing.assert_array_equal(found["expert"].asnumpy(), expected.expert)
    np.testing.assert_array_equal(found["weight"].asnumpy(), expected.weight)
    np.testing.assert_array_equal(found["undecided"].asnumpy() > 0, expected.undecided)
    assert expected.undecided.reshape(-1, TRACE.length).all(1).tolist() == [False] * 5 + [True] * 2
    np.testing.assert_array_equal(expected.expert[: TRACE.length], TRACE.expert[1, 4])  # and the twin says so too
    assert found["aux_loss"].asnumpy() == 0 == found["locality_loss"].asnumpy()


def test_it_has_nothing_to_train_and_nothing_to_save():
    assert not list(ReplayRouter(SHAPE, TRACE, 0).get_parameters())


def test_rows_of_one_text_must_agree():
    twice = replace(
        TRACE,
        token=TRACE.token[[0, 2, 2]],
        domain=TRACE.domain[[0, 2, 2]],
        home=TRACE.home[:3],
        expert=TRACE.expert[:, [0, 2, 2]].copy(),
        weight=TRACE.weight[:, [0, 2, 2]].copy(),
    )
    assert len(ReplayRouter(SHAPE, twice, 0).rows) == 2
    twice.weight[1, 2, 0, 0] += 1.0
    ReplayRouter(SHAPE, twice, 0)
    with pytest.raises(InputError, match="rows 1 and 2 are the same text with different decisions in sparse layer 1"):
        ReplayRouter(SHAPE, twice, 1)


def test_the_declaration_reads_the_trace(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(to_bytes(TRACE))
    check_trace(ReplayOptions(str(path)), RouterSizes(4, 8, 2, 2, 2, 6))
    with pytest.raises(InputError, match="moe.router.replay.trace .*: was written with sparse layers 2; expected 3"):
        check_trace(ReplayOptions(str(path)), RouterSizes(4, 8, 2, 2, 3, 6))
    with pytest.raises(InputError, match="moe.router.replay.trace is null"):
        check_trace(ReplayOptions(), RouterSizes(4, 8))
