"""What a checkpoint says of its run, and which runs may resume from it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.checkpoint.header import changes, check_same_ids, check_same_model, differences, training_header
from pangu_sigma.config.load import config_from_dict

CONFIG = {
    "moe": {"num_experts": 4, "num_groups": 2, "router": {"type": "switch"}},
    "train": {"seed": 3, "global_batch_size": 4},
}
LAYOUT = Topology(4, 2, 4)


def data(tokenizer="t" * 64, domains=("en", "zh"), fingerprint="f" * 64, clusters=None):
    record = None if clusters is None else SimpleNamespace(digest=clusters)
    manifest = SimpleNamespace(tokenizer_sha256=tokenizer, fingerprint=fingerprint, clusters=record)
    return SimpleNamespace(path="data", domains=domains, manifest=manifest)


@pytest.fixture
def reader():
    """A checkpoint of 100 steps of CONFIG on four ranks, without a disk."""
    header = training_header(config_from_dict(CONFIG), LAYOUT, data(), 320, 100, [])
    return SimpleNamespace(
        folder="run/checkpoints/step_100", header=header, config=lambda: config_from_dict(header.config)
    )


def test_the_header_says_where_sampling_and_randomness_stand(reader):
    header = reader.header
    assert (header.step, header.contents) == (100, "training")
    assert header.sampler["next_step"] == header.rng["next_step"] == 100 and header.rng["train.seed"] == 3
    assert (
        header.data.vocab_size == 320
        and header.data.domains == ("en", "zh")
        and header.data.tokenizer_sha256 == "t" * 64
    )
    assert header.config["moe"]["logical_topology"] == {"world_size": 4, "ranks_per_node": 2, "expert": 4}


@pytest.mark.parametrize(
    ("router", "problem"),
    [
        ({"type": "switch"}, None),
        ({"type": "hash"}, "moe.router.type is hash, but .* was trained with switch"),
        ({"type": "replay", "replay": {"trace": "a"}}, None),  # whose decisions are the trace's
        ({"type": "replay", "balance_rate": 0.0}, None),
    ],
)
def test_with_which_router_weights_go(reader, router, problem):
    config = config_from_dict({**CONFIG, "moe": {**CONFIG["moe"], "router": router}})
    if problem is None:
        check_same_model(reader, config)
    else:
        with pytest.raises(InputError, match=problem):
            check_same_model(reader, config)


def test_the_same_run_changes_nothing(reader):
    assert changes(reader, config_from_dict(CONFIG), data(), LAYOUT) == []


def test_what_makes_it_another_run_is_told(reader):
    other = {**CONFIG, "train": {"seed": 4, "global_batch_size": 8}, "data": {"mixing": "proportional"}}
    found = changes(reader, config_from_dict(other), data(fingerprint="g" * 64), Topology(2, 1, 2))
    for start in (
        "train.seed is 4, was 3",
        "train.global_batch_size is 8, was 4",
        "data.mixing is proportional, was balanced",
        "prepared data is ggg",
        "homes and locality refer to 2 ranks on 2 nodes, expert parallel 2; before to 4 on 2, 4",
    ):
        assert sum(line.startswith(start) for line in found) == 1, start
    assert len(found) == 5


@pytest.mark.parametrize(
    ("moe", "domains", "nodes", "same"),
    [
        ({"num_groups": 2}, 2, 2, True),
        ({"num_groups": 2}, 2, 4, True),
        ({"num_groups": 4}, 4, 2, True),
        ({"num_groups": 1}, 2, 2, False),  # both domains were on both nodes
        ({"num_groups": 2, "domain_groups": [1, 0]}, 2, 2, False),
        ({"num_groups": 2, "domain_groups": [0, 1, 1]}, 3, 2, False),
        ({"num_groups": 4, "domain_groups": [0, 1, 2]}, 3, 2, False),
        ({"num_groups": 4}, 4, 3, False),
    ],
)
def test_rows_that_were_placed_by_group(moe, domains, nodes, same):
    """A checkpoint of before, when rows followed their domain's expert group, resumes silently where they still do."""
    config = config_from_dict(
        {**CONFIG, "moe": {**CONFIG["moe"], **moe}, "data": {"placement": "domain_by_node"}},
    )
    text, layout = data(domains=tuple("abcd"[:domains])), Topology(nodes, 1)
    header = training_header(config, layout, text, 320, 100, [])
    assert header.sampler.pop("rows placed by") == "domain"
    reader = SimpleNamespace(folder="old", header=header, config=lambda: config_from_dict(header.config))
    found = changes(reader, config, text, layout)
    told = "rows placed by is domain, was expert group: other rows follow than would have"
    assert found == ([] if same else [told])
    header.sampler["rows placed by"] = "domain"
    assert changes(reader, config, text, layout) == []


@pytest.mark.parametrize(("then", "now", "told"), [("a", "a", 0), ("a", "b", 1), (None, "a", 1), (None, None, 0)])
def test_other_clusters_of_the_same_text_are_told(then, now, told):
    """Whatever the placement: a step has its part of each cluster."""
    config = config_from_dict({**CONFIG, "data": {"placement": "clustered"}})
    header = training_header(config, LAYOUT, data(clusters=then), 320, 100, [])
    reader = SimpleNamespace(folder="run", header=header, config=lambda: config_from_dict(header.config))
    found = changes(reader, config, data(clusters=now), LAYOUT)
    assert len(found) == told and all(line.startswith("clusters of documents is ") for line in found)


def test_the_network_must_be_the_same(reader):
    check_same_model(reader, config_from_dict({**CONFIG, "model": {"hidden_dropout": 0.5}, "parallel": {"expert": 2}}))
    for changed, message in (
        ({"model": {"hidden_size": 32}}, "model.hidden_size is 32, but run/checkpoints/step_100 was trained with 256"),
        ({"model": {"final_norm": "after_query"}}, "model.final_norm is after_query"),
        ({"moe": {**CONFIG["moe"], "num_experts": 8}}, "moe.num_experts is 8"),
        ({"moe": {**CONFIG["moe"], "shared_experts": 1}}, "moe.shared_experts is 1, but .* trained with 0"),
        ({"moe": {**CONFIG["moe"], "domain_groups": [1, 0]}}, r"moe.domain_groups is \(1, 0\)"),
        ({"moe": {**CONFIG["moe"], "router": {"type": "hash"}}}, "moe.router.type is hash, but"),
    ):
        with pytest.raises(InputError, match=message):
            check_same_model(reader, config_from_dict({**CONFIG, **changed}))


def test_each_layer_goes_on_with_its_router(reader):
    """Whether an entry names it or `moe.router` does."""

    def configured(router, *entries):
        moe = {**CONFIG["moe"], "router": router, "routers": list(entries)}
        return config_from_dict({**CONFIG, "model": {"sparse_layers": 2}, "moe": moe})

    hashed = {"type": "hash", "hash": {"balance": "frequency"}}
    mixed = configured({"type": "switch", "balance_rate": 0.01}, {"layers": [0], **hashed})
    saved = SimpleNamespace(folder=reader.folder, config=lambda: mixed)
    check_same_model(saved, mixed)
    check_same_model(saved, configured({**hashed, "balance_rate": 0.02}, {"layers": [1], "type": "switch"}))
    for router, entries, told in (
        ({"type": "switch", "balance_rate": 0.01}, [], "sparse layer 0: moe.router.type is switch, but .* with hash"),
        (
            {"type": "switch", "balance_rate": 0.01},
            [{"layers": [0], "type": "hash"}],
            r"sparse layer 0: moe.routers\[0\].hash.balance is uniform, but .* trained with frequency",
        ),
        (
            {"type": "switch"},
            [{"layers": [0], **hashed}],
            "moe.router.balance_rate is 0.0, but .* trained with 0.01; expected above 0",
        ),
        (
            {"type": "switch", "balance_rate": 0.01},
            [{"layers": [1], **hashed}],
            "sparse layer 0: moe.router.type is switch, but .* trained with hash",
        ),
    ):
        with pytest.raises(InputError, match=told):
            check_same_model(saved, configured(router, *entries))


def test_a_router_goes_on_with_the_state_that_it_has(reader):
    """Each refusal names the key and both values; what may change changes no state."""

    def with_router(**keys):
        return config_from_dict({**CONFIG, "moe": {**CONFIG["moe"], "router": {"type": "switch", **keys}}})

    def saved_with(**keys):
        return SimpleNamespace(folder=reader.folder, config=lambda: with_router(**keys))

    def locmoe(**keys):
        return {"type": "locmoe", "locmoe": keys}

    bias, margin = {"kind": "bias"}, {"kind": "margin", "strength": 0.5}
    for then, now, told in (
        ({"type": "hash"}, {"type": "hash", "top_k": 2}, "moe.router.top_k is 2, but .* trained with 1"),
        (
            {"type": "hash"},
            {"type": "hash", "hash": {"map": "m"}},
            "moe.router.hash.map is m, but .* trained with null",
        ),
        ({}, {"balance_rate": 0.1}, "moe.router.balance_rate is 0.1, but .* trained with 0.0; expected 0,"),
        ({"balance_rate": 0.1}, {}, "moe.router.balance_rate is 0.0, but .* trained with 0.1; expected above 0"),
        ({}, {"balance": {"kind": "sign"}}, "moe.router.balance.kind is sign, but .* trained with none"),
        (
            {"balance": {"kind": "pid"}},
            {"balance": {"kind": "quantile"}},
            "moe.router.balance.kind is quantile, but .* trained with pid; expected the same",
        ),
        (
            {"locality_bias": bias, "balance": {"kind": "sign"}},
            {"balance": {"kind": "sign"}},
            "moe.router.locality_bias.kind is none, but .* trained with bias",
        ),
        (
            locmoe(),
            locmoe(centre_rate=0.5),
            "moe.router.locmoe.centre_rate is 0.5, but .* trained with 0.0; expected 0, for it has no means",
        ),
        (
            locmoe(centre_rate=0.5),
            locmoe(),
            "moe.router.locmoe.centre_rate is 0.0, but .* trained with 0.5; expected above 0",
        ),
        (
            {},
            {"locality_bias": bias},
            "moe.router.locality_bias.kind is bias, but .* trained with none; expected none .*start_step",
        ),
        (
            {"locality_bias": bias, "balance_rate": 0.1},
            {"balance_rate": 0.1},
            "moe.router.locality_bias.kind is none, but .* trained with bias; expected bias or margin .*strength 0",
        ),
    ):
        with pytest.raises(InputError, match=told):
            check_same_model(saved_with(**then), with_router(**now))
    for then, now in (
        ({"locality_bias": bias}, {"locality_bias": margin}),
        ({"locality_bias": bias}, {}),
        ({"balance_rate": 0.1}, {"balance_rate": 0.05}),
        ({"balance": {"kind": "pid"}}, {"balance": {"kind": "pid", "rate": 0.01, "derivative": 0.1}}),
        ({}, {"switch": {"jitter": 0.1}, "statistics": "rank"}),
        (locmoe(centre_rate=0.5), locmoe(centre_rate=1e-9, value_scale=2.0, rectify=False)),
        (locmoe(), {**locmoe(locality_loss_weight=0.1), "locality_loss": {"initial_weight": 0.0}}),
    ):
        check_same_model(saved_with(**then), with_router(**now))


def test_what_may_be_the_reason_is_named(reader):
    assert differences(reader, config_from_dict(CONFIG)) == ""
    changed = {
        **CONFIG,
        "model": {"ffn_hidden_size": 64},
        "runtime": {"precision": "fp16"},
        "train": {**CONFIG["train"], "seed": 9},
    }
    assert differences(reader, config_from_dict(changed)) == (
        "; of what decides it these keys differ: model.ffn_hidden_size (64, was null), runtime.precision (fp16, was "
        "fp32)"
    )


def test_ids_must_mean_the_same(reader):
    check_same_ids(reader, data())
    with pytest.raises(
        InputError,
        match="another tokenizer than run/checkpoints/step_100 was trained with .*tttttttttttt.; its ids mean",
    ):
        check_same_ids(reader, data(tokenizer="u" * 64))
    with pytest.raises(InputError, match="data has the domains zh, en, but .* was trained with en, zh"):
        check_same_ids(reader, data(domains=("zh", "en")))
    unknown = replace(reader.header, data=replace(reader.header.data, tokenizer_sha256=None))
    check_same_ids(SimpleNamespace(folder="x", header=unknown), data(tokenizer="u" * 64))
