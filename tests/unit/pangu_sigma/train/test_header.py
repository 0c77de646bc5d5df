"""What a checkpoint says of its run, and which runs may go on from it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.config import config_from_dict
from pangu_sigma.train.header import changes, check_same_ids, check_same_model, training_header

CONFIG = {"moe": {"num_experts": 4, "num_groups": 2, "router": {"type": "switch"}}, "train": {"seed": 3, "global_batch_size": 4}}
LAYOUT = Topology(4, 2, 4)


def data(tokenizer="t" * 64, domains=("en", "zh"), fingerprint="f" * 64):
    return SimpleNamespace(path="data", domains=domains, manifest=SimpleNamespace(tokenizer_sha256=tokenizer, fingerprint=fingerprint))


@pytest.fixture
def reader():
    """A checkpoint of 100 steps of CONFIG on four ranks, without a disk."""
    header = training_header(config_from_dict(CONFIG), LAYOUT, data(), 320, 100, [])
    return SimpleNamespace(folder="run/checkpoints/step_100", header=header, config=lambda: config_from_dict(header.config))


def test_the_header_says_where_sampling_and_randomness_stand(reader):
    header = reader.header
    assert (header.step, header.contents) == (100, "training")
    assert header.sampler["next_step"] == header.rng["next_step"] == 100 and header.rng["train.seed"] == 3
    assert header.data.vocab_size == 320 and header.data.domains == ("en", "zh") and header.data.tokenizer_sha256 == "t" * 64
    assert header.config["moe"]["layout"] == {"world_size": 4, "ranks_per_node": 2, "expert": 4}


def test_the_same_run_changes_nothing(reader):
    assert changes(reader, config_from_dict(CONFIG), data(), LAYOUT) == []


def test_what_makes_it_another_run_is_told(reader):
    other = {**CONFIG, "train": {"seed": 4, "global_batch_size": 8}, "data": {"mixing": "proportional"}}
    found = changes(reader, config_from_dict(other), data(fingerprint="g" * 64), Topology(2, 1, 2))
    for start in ("train.seed is 4, was 3", "train.global_batch_size is 8, was 4", "data.mixing is proportional, was balanced",
                  "prepared data is ggg", "homes and locality refer to 2 ranks on 2 nodes, expert parallel 2; before to 4 on 2, 4"):
        assert sum(line.startswith(start) for line in found) == 1, start
    assert len(found) == 5


def test_the_network_must_be_the_same(reader):
    check_same_model(reader, config_from_dict({**CONFIG, "model": {"hidden_dropout": 0.5}, "parallel": {"expert": 2}}))
    for changed, message in (({"model": {"hidden_size": 32}}, "model.hidden_size is 32, but run/checkpoints/step_100 was trained with 256"),
                             ({"model": {"final_norm": "after_query"}}, "model.final_norm is after_query"),
                             ({"moe": {**CONFIG["moe"], "num_experts": 8}}, "moe.num_experts is 8"),
                             ({"moe": {**CONFIG["moe"], "domain_groups": [1, 0]}}, r"moe.domain_groups is \(1, 0\)"),
                             ({"moe": {**CONFIG["moe"], "router": {"type": "hash"}}}, "moe.router.type is hash, but")):
        with pytest.raises(InputError, match=message):
            check_same_model(reader, config_from_dict({**CONFIG, **changed}))


def test_ids_must_mean_the_same(reader):
    check_same_ids(reader, data())
    with pytest.raises(InputError, match="another tokenizer than run/checkpoints/step_100 was trained with .*tttttttttttt.; its ids mean"):
        check_same_ids(reader, data(tokenizer="u" * 64))
    with pytest.raises(InputError, match="data has the domains zh, en, but .* was trained with en, zh"):
        check_same_ids(reader, data(domains=("zh", "en")))
    unknown = replace(reader.header, data=replace(reader.header.data, tokenizer_sha256=None))
    check_same_ids(SimpleNamespace(folder="x", header=unknown), data(tokenizer="u" * 64))
