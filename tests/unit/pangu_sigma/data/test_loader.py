import threading
from dataclasses import replace
from typing import List, Sequence

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.config.schema import Config, MoEConfig
from pangu_sigma.config.schema_run import TrainConfig
from pangu_sigma.data.batch import Batch
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.loader import (
    STEPS_READ_AT_ONCE,
    BatchLoader,
    LoaderOptions,
    choose_validation_rows,
    create_loader,
)
from pangu_sigma.data.manifest import SPLITS
from pangu_sigma.data.placement import RowPlacement, place_rows
from pangu_sigma.data.sampler import BatchSampler

LAYOUT = Topology(4, 2)


def placed(kind: str, rows: Sequence[int] = (9, 9, 9)) -> RowPlacement:
    cells = {split: [(count,) for count in rows] for split in SPLITS}
    return place_rows(LAYOUT, kind, "balanced", ["en", "zh", "code"], cells, None)


def make_sampler(data: PreparedData, placement: str = "shuffled", size: int = 12) -> BatchSampler:
    rows = [data.rows("train", domain) for domain in range(3)]
    return BatchSampler([(count,) for count in rows], placed(placement, rows), size, seed=4)


def joined(batches: List[Batch]) -> Batch:
    return Batch(*(np.concatenate(arrays) for arrays in zip(*batches)))


@pytest.mark.parametrize(("world", "micro"), [(1, 12), (1, 3), (2, 6), (2, 2), (4, 3), (4, 1), (12, 1)])
def test_ranks_and_micro_batches_make_up_the_global_batch(data: PreparedData, world: int, micro: int) -> None:
    sampler = make_sampler(data)
    step = 5
    expected = sampler.batch(step)
    loaders = [BatchLoader(data, make_sampler(data), rank, world, LoaderOptions(micro)) for rank in range(world)]
    parts = [loader.step(step) for loader in loaders]
    assert all(batch.ids.shape == (micro, 32) for part in parts for batch in part)
    whole = joined([batch for part in parts for batch in part])
    rows = np.stack([data.read("train", int(d), [int(r)])[0] for d, r in zip(expected.domain, expected.row)])
    np.testing.assert_array_equal(whole.ids, rows[:, :-1])
    np.testing.assert_array_equal(whole.targets, rows[:, 1:])
    np.testing.assert_array_equal(whole.domain, expected.domain)
    assert whole.home.tolist() == [i // 3 for i in range(12)]
    np.testing.assert_array_equal(whole.loss_mask, whole.ids != data.end_of_text)
    for loader in loaders:
        loader.close()


def test_steps_in_any_order_and_across_blocks(data: PreparedData) -> None:
    loader = BatchLoader(data, make_sampler(data), 0, 1, LoaderOptions(12))
    for step in (STEPS_READ_AT_ONCE - 1, STEPS_READ_AT_ONCE, 5 * STEPS_READ_AT_ONCE + 3, 0):
        expected = make_sampler(data).batch(step)
        (batch,) = loader.step(step)
        for place in (0, 7, 11):
            row = data.read("train", int(expected.domain[place]), [int(expected.row[place])])[0]
            np.testing.assert_array_equal(batch.ids[place], row[:-1])
    loader.close()


def test_closing_ends_the_thread(data: PreparedData) -> None:
    loader = BatchLoader(data, make_sampler(data), 0, 1, LoaderOptions(12))
    loader.step(0)
    assert any("batch-loader" in thread.name for thread in threading.enumerate())
    loader.close()
    assert not any("batch-loader" in thread.name for thread in threading.enumerate())


def test_an_error_of_the_thread_reaches_the_caller(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> np.ndarray:
        raise InputError("train-en.mindrecord: gone")

    loader = BatchLoader(data, make_sampler(data), 0, 1, LoaderOptions(12))
    monkeypatch.setattr(data, "read", fail)
    with pytest.raises(InputError, match="gone"):
        loader.step(0)
    loader.close()


@pytest.mark.parametrize("placement", ["shuffled", "domain_by_node"])
@pytest.mark.parametrize(("world", "micro"), [(1, 12), (2, 3), (4, 1), (3, 2)])
def test_validation_rows_are_the_same_at_any_degree(data: PreparedData, placement: str, world: int, micro: int) -> None:
    parts = []
    for rank in range(world):
        loader = BatchLoader(data, make_sampler(data, placement), rank, world, LoaderOptions(micro, eval_rows=10))
        parts.append(loader.validation())
        loader.close()
    assert len({len(part) for part in parts}) == 1
    assert all(batch.ids.shape == (micro, 32) for part in parts for batch in part)
    whole = joined([batch for part in parts for batch in part])
    real = whole.loss_mask.any(axis=1)
    assert real.sum() == 10
    np.testing.assert_array_equal(whole.loss_mask[real], whole.ids[real] != data.end_of_text)
    found = sorted((int(d), row.tolist()) for d, row in zip(whole.domain[real], whole.ids[real]))
    expected = []
    for domain, count in enumerate((4, 3, 3)):
        available = data.rows("validation", domain)
        numbers = [i * available // count for i in range(count)]
        expected += [(domain, row[:-1].tolist()) for row in data.read("validation", domain, numbers)]
    assert found == sorted(expected)


@pytest.mark.parametrize("placement", ["shuffled", "domain_by_node"])
@pytest.mark.parametrize("wanted", [10, 11, 12])
def test_validation_rows_are_read_at_home(data: PreparedData, placement: str, wanted: int) -> None:
    """Whatever their number: a rank that got others' rows would need experts that no rank it exchanges tokens with may
    hold.
    """
    domains = {rank: {0, 1} if rank < 2 else {1, 2} for rank in range(4)}
    if placement == "shuffled":
        domains = dict.fromkeys(range(4), {0, 1, 2})
    read = 0
    for rank in range(LAYOUT.world_size):
        loader = BatchLoader(
            data, make_sampler(data, placement), rank, LAYOUT.world_size, LoaderOptions(1, eval_rows=wanted)
        )
        own = joined(loader.validation())
        loader.close()
        assert set(own.home.tolist()) == {rank} and set(own.domain.tolist()) <= domains[rank]
        read += own.loss_mask.any(axis=1).sum()
    assert read == wanted


def test_no_validation_rows_wanted(data: PreparedData) -> None:
    loader = BatchLoader(data, make_sampler(data), 0, 2, LoaderOptions(3))
    assert loader.validation() == []
    loader.close()


def test_validation_homes_in_equal_shares() -> None:
    chosen = choose_validation_rows([9, 9, 9], 12, placed("shuffled"))
    assert chosen.home.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert chosen.domain.tolist() == [0, 1, 2] * 4


def test_validation_homes_by_node() -> None:
    chosen = choose_validation_rows([9, 9, 9], 12, placed("domain_by_node"))
    on_node = sorted(zip(chosen.domain.tolist(), (chosen.home // 2).tolist()))
    # three domains on two nodes: the middle one's rows 0 and 2 lie on the first half of it, 4 and 6 on the second
    assert on_node == [(0, 0)] * 4 + [(1, 0)] * 2 + [(1, 1)] * 2 + [(2, 1)] * 4
    assert np.bincount(chosen.home).tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize(("wanted", "counts"), [(7, [2, 1, 4]), (3, [1, 1, 1]), (99, [2, 1, 8]), (0, [0, 0, 0])])
def test_a_domain_that_runs_out_is_passed_over(wanted: int, counts: List[int]) -> None:
    chosen = choose_validation_rows([2, 1, 8], wanted, placed("shuffled", (2, 1, 8)))
    assert np.bincount(chosen.domain, minlength=3).tolist() == counts
    assert len(set(zip(chosen.domain.tolist(), chosen.row.tolist()))) == sum(counts)


def test_a_batch_that_does_not_divide_is_an_error(data: PreparedData) -> None:
    with pytest.raises(InputError, match=r"train\.global_batch_size: found 12; expected a multiple of 2 .* x 4"):
        BatchLoader(data, make_sampler(data), 0, 2, LoaderOptions(4))


@pytest.mark.parametrize(("placement", "notes"), [("shuffled", 0), ("domain_by_node", 1)])
def test_what_does_not_divide_is_for_the_user_to_read(data: PreparedData, placement: str, notes: int) -> None:
    config = replace(Config(), train=TrainConfig(global_batch_size=12, eval_rows=0))
    config = replace(config, data=replace(config.data, placement=placement))
    loader = create_loader(config, data, LAYOUT, rank=0, world_size=1)
    loader.close()
    assert len(loader.notes) == notes and all("zh: 50 % on node 0, 50 % on node 1" in note for note in loader.notes)


def test_loader_of_a_config(data: PreparedData) -> None:
    train = TrainConfig(global_batch_size=12, micro_batch_size=3, seed=4, eval_rows=6)
    config = replace(Config(), train=train, moe=MoEConfig(num_groups=3, num_experts=9))
    loader = create_loader(config, data, LAYOUT, rank=1, world_size=2)
    expected = make_sampler(data).batch(2)
    batches = loader.step(2)
    assert len(batches) == 2
    np.testing.assert_array_equal(joined(batches).domain, expected.domain[6:])
    assert len(loader.validation()) == 1
    loader.close()
