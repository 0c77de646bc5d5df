"""`bench all-to-all`: sizes, limits and rows; tests/distributed/test_bench.py runs it on ranks."""

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.bench.all_to_all import (
    ExchangeTiming,
    NodeBytes,
    bench_all_to_all,
    line_of,
    link_limit,
    sizes_up_to,
    variants,
)
from pangu_sigma.config.load import config_from_dict


@pytest.mark.parametrize(
    ("tokens", "sizes"),
    [(1024, (64, 128, 256, 512, 1024)), (384, (64, 128, 256, 384)), (64, (64,)), (65, (64, 65)), (8, (8,))],
)
def test_sizes_are_powers_of_two_up_to_the_configurations(tokens, sizes):
    assert sizes_up_to(tokens) == sizes


def test_every_dispatcher_has_a_row_for_each_number_of_chunks_that_it_takes():
    assert [name for name, _ in variants()] == [
        "flat",
        "flat, 2 chunks",
        "flat, 4 chunks",
        "hierarchical",
        "hierarchical, 2 chunks",
        "node_dedup",
        "node_dedup, 2 chunks",
        "ragged",
    ]


def test_limit_of_a_link():
    assert link_limit(NodeBytes(7, 25_000_000), 200e6) == 1.0  # 200 Mbit in a second
    assert link_limit(None, 200e6) is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (ExchangeTiming(64, "flat", 0.05, NodeBytes(1000, 2000), 0.02), "64 flat 50.00 1,000 2,000 20.00 40%"),
        (ExchangeTiming(64, "flat", 0.05, None, None), "64 flat 50.00 - - - -"),
        (ExchangeTiming(64, "flat", 0.05, NodeBytes(10, 0), 0.0), "64 flat 50.00 10 0 - -"),
    ],
)
def test_rows(row, words):
    assert line_of(row).split() == words.split()


def test_rows_fit_the_screen():
    widest = ExchangeTiming(
        65536, max((name for name, _ in variants()), key=len), 9.999, NodeBytes(999_999_999, 999_999_999), 9.9
    )
    assert len(line_of(widest)) == 79  # 10 s, a gigabyte


def test_one_rank_has_nobody_to_send_to():
    with pytest.raises(InputError, match="parallel.expert is 1, so that no token leaves its rank"):
        bench_all_to_all(config_from_dict({}))


def test_slots_must_be_given():
    with pytest.raises(InputError, match="moe.capacity.mode is critical"):
        bench_all_to_all(config_from_dict({"parallel": {"expert": 2}, "moe": {"capacity": {"mode": "critical"}}}))
