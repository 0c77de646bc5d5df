"""A routing trace's file: what is written comes back, and what is no whole trace is refused in one line."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from helpers.traces import made_up_trace
from locmoe_ops.errors import InputError
from locmoe_ops.router_registry import RouterSizes
from locmoe_ops.routing_trace import MARKER, bytes_a_token, check_fits, matching_rows, read_trace, to_bytes

ABOUT = {"format": "pangu-sigma routing trace", "version": "1", "num_groups": "2", "domains": '["en", "zh"]'}


def write(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    return str(tmp_path / "a.safetensors")


def test_a_trace_comes_back_as_it_was_written(tmp_path):
    trace = made_up_trace(rows=5)
    content = to_bytes(trace)
    found = read_trace(write(tmp_path, content), "--trace")
    for name in ("token", "domain", "home", "expert", "weight", "node"):
        np.testing.assert_array_equal(getattr(found, name), getattr(trace, name))
        assert getattr(found, name).dtype == getattr(trace, name).dtype
    assert (found.num_groups, found.domains, found.source) == (trace.num_groups, trace.domains, trace.source)
    assert (found.rows, found.length, found.layers, found.top_k, found.num_experts) == (5, 6, 2, 2, 8)
    assert MARKER in content[:4096]


def test_its_size_is_that_of_its_tokens():
    """Without what does not grow with them: the head, and two numbers a row."""
    small, large = (to_bytes(made_up_trace(rows=rows)) for rows in (100, 300))
    assert len(large) - len(small) == pytest.approx(200 * (6 * bytes_a_token(2, 2) + 8), abs=64)


def tensors(**changes):
    found = load(to_bytes(made_up_trace()))
    found.update(changes)
    return {name: array for name, array in found.items() if array is not None}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"not one", "is no whole safetensors file"),
        (to_bytes(made_up_trace())[:-1], "is no whole safetensors file"),
        (save({"weight": np.zeros(3, np.float32)}), "is no routing trace of version 1"),
        (save(tensors(), {**ABOUT, "version": "2"}), "is no routing trace of version 1"),
        (save(tensors(node=None), ABOUT), "is no routing trace of version 1"),
        (
            save(tensors(domain=np.zeros(4, np.int64)), ABOUT),
            r"domain is int64 of shape \(4,\); expected int32",
        ),
        (save(tensors(domain=np.zeros(3, np.int32)), ABOUT), r"has shape .* which does not fit the other tensors"),
        (save(tensors(home=np.zeros((4, 1), np.int32)), ABOUT), r"home is int32 of shape \(4, 1\)"),
        (
            save(tensors(expert=np.full((2, 4, 6, 2), 9, np.int32)), ABOUT),
            "expert holds numbers from 9 .* from 0 to 8",
        ),
        (save(tensors(domain=np.full(4, 2, np.int32)), ABOUT), "domain holds numbers from 2 to 2; expected .* 0 to 1"),
        (save(tensors(token=np.full((4, 6), -1, np.int32)), ABOUT), "token holds numbers .*; expected .* at least 0"),
        (save(tensors(), {**ABOUT, "num_groups": "3"}), "3 groups do not divide 8 experts"),
        (save(tensors(), {**ABOUT, "num_groups": "two"}), "its num_groups and domains cannot be read"),
        (save(tensors(), {**ABOUT, "domains": "3"}), "its num_groups and domains cannot be read"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, content, problem):
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=f"--trace .*a.safetensors: .*{problem}") as refused:
        read_trace(path, "--trace")
    assert "\n" not in str(refused.value)


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(InputError, match=r"--trace .*absent: cannot be read \(no such file"):
        read_trace(str(tmp_path / "absent"), "--trace")
    with pytest.raises(InputError, match=r"cannot be read \(is a directory\)"):
        read_trace(str(tmp_path), "--trace")


def test_a_trace_of_another_network_does_not_fit():
    trace = made_up_trace()
    check_fits(trace, RouterSizes(16, 8, 1, 2, 2, 6), "x")
    check_fits(trace, RouterSizes(16, 8, 1, 2), "x")
    for sizes, problem in (
        (RouterSizes(16, 4), "written with moe.num_experts 8; expected 4"),
        (RouterSizes(16, 8, 1, 1), "written with moe.router.top_k 2; expected 1"),
        (RouterSizes(16, 8, 1, 2, 3), "written with sparse layers 2; expected 3"),
        (RouterSizes(16, 8, 1, 2, 2, 12), "written with model.sequence_length 6; expected 12"),
    ):
        with pytest.raises(InputError, match=f"x: was {problem}, as configured"):
            check_fits(trace, sizes, "x")


def test_rows_of_two_traces_are_told_by_text_and_domain():
    """The domains' numbers may differ: their names count."""
    first = made_up_trace(rows=5)
    order = np.array([3, 0, 4])
    second = replace(
        made_up_trace(rows=3), token=first.token[order], domain=1 - first.domain[order], domains=("zh", "en")
    )
    of_first, of_second = matching_rows(first, second)
    assert dict(zip(of_first.tolist(), of_second.tolist())) == {3: 0, 0: 1, 4: 2}
    assert len(matching_rows(first, replace(second, domains=("en", "zh")))[0]) == 0
    twice = replace(first, token=first.token[[0, 0, 1, 2, 3]], domain=first.domain[[0, 0, 1, 2, 3]])
    assert matching_rows(twice, first)[0].tolist() == [0, 2, 3, 4]
