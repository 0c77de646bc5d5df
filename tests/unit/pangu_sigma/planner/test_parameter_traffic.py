"""Bytes of parameters and gradients, against a list of what is read and written, and in the predicted step."""

import pytest

from helpers.jobs import build, make_config, make_job
from pangu_sigma.model.parameter_groups import reads_copy
from pangu_sigma.planner.cluster import Cluster
from pangu_sigma.planner.hardware import load_hardware
from pangu_sigma.planner.parameter_traffic import parameter_traffic
from pangu_sigma.planner.parameters import count_parameters, parameters
from pangu_sigma.planner.plan import as_json, make_plan
from pangu_sigma.planner.predict import step_time
from pangu_sigma.planner.report import report
from pangu_sigma.train.half_copies import readers

__all__ = ["build", "make_config", "make_job"]

FP16 = {"precision": "fp16"}
SEVERAL = {"micro_batch_size": 2}
# Bytes that are read and written of one number. A cast: 4 and 2, either way; a sum: 4 + 4 and 4.
CAST, ADD = 4 + 2, 4 + 4 + 4


@pytest.mark.parametrize(
    ("runtime", "train", "copied", "others", "copied_once", "others_once"),
    [
        ({}, {}, 0, 0, 0, 0),
        ({}, SEVERAL, ADD, ADD, 4, 4),
        (FP16, {}, CAST + CAST, 0, 0, 0),
        (FP16, SEVERAL, CAST + ADD, ADD, CAST + 4, 4),
    ],
    ids=["fp32", "fp32, several", "fp16", "fp16, several"],
)
def test_bytes_by_hand(make_job, runtime, train, copied, others, copied_once, others_once):
    job = make_job(1, 2, runtime=runtime, train=train)
    norms, positions, queries, gates = 7 * 2 * 16, 12 * 16, 12 * 16, 0  # in float32 alone; GrAP has no weights
    rest = norms + positions + queries + gates
    found, numbers = parameter_traffic(job), count_parameters(job).rank
    assert found.numbers == numbers
    assert found.micro_batch == copied * (numbers - rest) + others * rest
    assert found.step == copied_once * (numbers - rest) + others_once * rest
    assert found.total == found.micro_batch * job.micro_batches + found.step
    assert job.micro_batches == (2 if train else 1)


def test_a_product_that_adds_saves_the_pass(make_job):
    """Of weights of linear maps that are small enough; others are read as they are, without a cast; the word table's
    gradient, which is of two, is float32 already.
    """
    sections = {"train": SEVERAL, "model": {"hidden_size": 4096, "num_heads": 32, "ffn_hidden_size": 2048}}
    plain, fused = (
        make_job(1, 2, runtime={**FP16, "device": "ascend", "fused": {"accumulate": on}}, **sections)
        for on in (False, True)
    )
    small = sum(one.size for one in parameters(fused) if one.is_map and one.shape[0] != one.shape[1])
    assert small == 2 * 2 * 4096 * 2048 and 4096 * 4096 > 10_000_000  # attention's maps are too large
    copied = sum(one.size for one in parameters(fused) if reads_copy(one.name) and one.name != "embedding.word")
    saved = small * (CAST + ADD - 2 * 4) + (copied - small) * (CAST + ADD - (2 + 2 * 4))
    assert parameter_traffic(plain).micro_batch - parameter_traffic(fused).micro_batch == saved


@pytest.mark.parametrize("router", ["locmoe", "switch"])
def test_copies_are_of_what_the_built_network_reads_in_half_precision(make_job, build, router):
    """By names here, by Cells there."""
    job = make_job(2, 2, parallel={"expert": 4}, moe={"router": {"type": router}}, model={"sparse_query_layer": True})
    read = {one.parameter.name for one in readers(build(job))}
    assert read == {one.name for one in parameters(job) if reads_copy(one.name)}


def test_the_step_has_it_as_a_term_of_its_own(make_job):
    """By the memory's bandwidth; twice the micro-batches of half the rows read and write twice as much."""
    hardware = load_hardware("910b")
    runtime = {**FP16, "device": "ascend"}
    one, two, four = (make_job(1, 2, runtime=runtime, train={"micro_batch_size": rows}) for rows in (4, 2, 1))
    times = [step_time(job, hardware) for job in (one, two, four)]
    for job, time in zip((one, two, four), times):
        bandwidth = hardware.compute.bandwidth_gb_s.value * 1e9
        assert time.parameters == pytest.approx(parameter_traffic(job).total / bandwidth)
        assert time.device == pytest.approx(
            time.compute + time.parameters + sum(time.causes.values()) - sum(time.hidden.values())
        )
    assert times[2].parameters - times[1].parameters == pytest.approx(
        2 * parameter_traffic(two).micro_batch / bandwidth
    )


def test_plan_shows_it(make_config):
    config = make_config(runtime={**FP16, "device": "ascend"}, train=SEVERAL)
    plan = make_plan(config, Cluster(1, 2, load_hardware("910b")))
    text, found = report(plan, 10**9, None), as_json(plan, 10**9)
    assert "parameters, read and written" in text and "bytes each and micro-batch" in text
    assert found["seconds"]["parameters"] == plan.time.parameters > 0
    assert found["parameter_traffic"]["total"] == parameter_traffic(plan.job).total
    assert all(len(line) <= 79 for line in text.splitlines())
