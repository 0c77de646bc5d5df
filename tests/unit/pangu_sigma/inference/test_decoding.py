"""What graphs are fed, step by step: here functions that write down their inputs and answer as they are told."""

import numpy as np
import pytest

from mindspore import Tensor

from pangu_sigma.inference.decoding import Continuation, DecodedRow, decode
from pangu_sigma.inference.graphs import GraphPair
from pangu_sigma.inference.sampling import RowSampler, SamplingSettings

END, WORDS = 2, 8
# What the likeliest token of each row is, step by step: the first row ends early, the second when it has no room left.
ANSWERS = [[5, END, 7, 7], [6, END, 4, 1]]


class Recorder:
    """A pair of graphs for three rows of six places."""

    def __init__(self):
        self.fed, self.prompts = [], None
        self.pair = GraphPair(3, 6, self.prefill, self.decode)

    def prefill(self, ids, positions, last, domain, home):
        self.prompts = [value.asnumpy().tolist() for value in (ids, positions, last, domain, home)]
        return self._answer(), "the cache"

    def decode(self, ids, positions, places, domain, home, cache):
        assert cache == "the cache"
        self.fed.append([value.asnumpy().reshape(-1).tolist() for value in (ids, positions, places)])
        return self._answer(), cache

    def _answer(self):
        logits = np.zeros((3, WORDS + 1), np.float32)
        logits[:, WORDS] = 9.0  # a row of the word table without a word
        for row, answers in enumerate(ANSWERS):
            logits[row, answers[len(self.fed)]] = 1.0
        return Tensor(logits)


def _run(recorder, resets, stop_at_end, room=(4, 3)):
    prompts = [[3, 4], [7, END, 6]]
    rows = [
        DecodedRow(
            prompt, domain, home, most, RowSampler(SamplingSettings(temperature=0.0), prompt, np.random.default_rng(0))
        )
        for prompt, domain, home, most in zip(prompts, (1, 0), (4, 5), room)
    ]
    return list(decode(recorder.pair, rows, Continuation(END, resets), WORDS, stop_at_end))


@pytest.fixture
def recorder():
    return Recorder()


def test_prompts_are_padded_on_the_right(recorder):
    _run(recorder, resets=True, stop_at_end=True)
    ids, positions, last, domain, home = recorder.prompts
    assert ids == [[3, 4, 0, 0, 0, 0], [7, END, 6, 0, 0, 0], [0] * 6]
    assert [row[:3] for row in positions[:2]] == [[0, 1, 2], [0, 1, 0]]
    assert (last, domain, home) == ([1, 2, 0], [1, 0, 0], [4, 5, 0])


def test_rows_end_at_end_of_text_or_without_room(recorder):
    assert _run(recorder, resets=True, stop_at_end=True) == [[5, 6], [None, None]]
    assert len(recorder.fed) == 1


def test_documents_may_follow_each_other(recorder):
    assert _run(recorder, resets=True, stop_at_end=False) == [[5, 6], [END, END], [7, 4], [7, None]]
    # Positions begin anew behind the end of a document; a row that is at its end stays where it is, as does one without
    # a prompt.
    assert recorder.fed == [
        [[5, 6, 0], [2, 1, 0], [2, 3, 0]],
        [[END, END, 0], [3, 2, 0], [3, 4, 0]],
        [[7, END, 0], [0, 2, 0], [4, 4, 0]],
    ]


def test_positions_run_on_where_documents_do_not_count(recorder):
    _run(recorder, resets=False, stop_at_end=False)
    assert [positions for _, positions, _ in recorder.fed] == [[2, 3, 0], [3, 4, 0], [4, 4, 0]]
