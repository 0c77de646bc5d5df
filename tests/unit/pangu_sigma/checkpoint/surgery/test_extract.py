"""A model of one domain: the logits of the whole one to the bit, the size that arithmetic predicts, and nothing of the
rest.

Bits are compared at sizes that leave no rest in matrix products (see test_inherit), and where no token is dropped: with
other domains gone, an expert's slots are shared by other tokens.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.checkpoint.surgery.extract import Domain, config_of_domain, extract
from pangu_sigma.config.load import load_config
from pangu_sigma.config.validate import validate
from pangu_sigma.data.manifest import describe_file
from pangu_sigma.data.survey import check_keys, survey
from pangu_sigma.data.vocabulary import Vocabulary

CASES = {
    "hash, a slot a domain": ({"domain_embeddings": True}, {"router": {"type": "hash"}}),
    "hash by a gate, below switch": (
        {"sparse_layers": 2},
        {
            "router": {"type": "switch", "top_k": 2, "balance_rate": 0.01},
            "routers": [{"layers": [0], "type": "hash", "hash": {"weights": "gate"}}],
        },
    ),
    "topk, groups crosswise": (
        {},
        {
            "router": {"type": "topk", "balance": {"kind": "pid"}, "locality_bias": {"kind": "bias"}},
            "domain_groups": [1, 0],
        },
    ),
    "locmoe": (
        {"domain_embeddings": True, "sparse_query_layer": True},
        {"router": {"type": "locmoe", "balance_rate": 0.01}},
    ),
    "locmoe by code": ({}, {"router": {"type": "locmoe", "balance_rate": 0.01, "locmoe": {"gate_input": "code"}}}),
    "locmoe, centred": ({}, {"router": {"type": "locmoe", "locmoe": {"centre_rate": 0.5}}}),
    "gshard": ({}, {"router": {"type": "gshard", "top_k": 2}}),
    "switch, two shared": ({}, {"router": {"type": "switch", "top_k": 2}, "shared_experts": 2}),
    "switch, top 8 of 8 a group, one shared": (
        {},
        {"router": {"type": "switch", "top_k": 8}, "num_experts": 16, "shared_experts": 1},
    ),
    "faster_moe, one group for both": (
        {"domain_embeddings": True},
        {"router": {"type": "faster_moe"}, "num_groups": 1},
    ),
    "smile": ({}, {"router": {"type": "smile", "smile": {"num_nodes": 2}}}),
    "c2r": ({}, {"router": {"type": "c2r", "top_k": 2, "c2r": {"num_devices": 1}}}),
    "etr": (
        {},
        {"router": {"type": "etr"}, "dispatch": {"drop_priority": "weight"}, "expert_placement": "node_grouped"},
    ),
}


@pytest.fixture(params=CASES)
def whole(request, workshop):
    """A model whose biases of the selection, where there are any, are not zero."""
    model, moe = CASES[request.param]
    found = workshop.random_model(workshop.config({"dense_layers": 1, "sparse_layers": 1, **model}, moe), seed=2)
    rng = np.random.default_rng(3)
    for parameter in found.parts.network.get_parameters():
        if parameter.name.endswith(("balance_bias", "value_mean")):
            from mindspore import Tensor

            parameter.set_data(Tensor((0.2 * rng.standard_normal(parameter.shape)).astype(np.float32)))
    found.parts.set_locality_bias(0.0)  # all experts of one process are local
    return found


@pytest.mark.parametrize("number, name", [(0, "one"), (1, "two")])
def test_logits_of_the_domain_are_the_whole_models(workshop, whole, tmp_path, number, name):
    source = workshop.save(whole, tmp_path / "run")
    expected = whole.logits((number,) * 3)
    extract(str(source), str(tmp_path / "part"), name if number else str(number))
    shutil.rmtree(tmp_path / "run")  # nothing of it is needed any more
    config = load_config(tmp_path / "part" / "config.yaml")
    validate(config, 1)
    words = Vocabulary(320, 1, np.zeros((1, 320), np.int64))  # maps come with the checkpoint
    np.testing.assert_array_equal(workshop.load(config, tmp_path / "part", words).logits((0,) * 3), expected)


def test_the_domains_differ(whole):
    """Else the test above would not notice a wrong group or slot."""
    assert (
        np.abs(whole.logits((0, 0, 0)) - whole.logits((1, 1, 1))).max() > 0.01 or whole.config.moe.router.type == "etr"
    )


def test_size_is_what_arithmetic_predicts(workshop, tmp_path):
    """Hidden d = 16, inner f = 20, V = 320 words, S = 48; one dense, one sparse layer and the query layer; 4 bytes a
    number.
    """
    d, f, words, length = 16, 20, 320, 48
    model = workshop.random_model(
        workshop.config(
            {"dense_layers": 1, "sparse_layers": 1, "domain_embeddings": True}, {"router": {"type": "hash"}}
        )
    )
    extract(str(workshop.save(model, tmp_path / "run")), str(tmp_path / "part"), "two")
    attention = 4 * d * d + 3 * d  # maps of query, key, value and output; no bias of keys
    network = 2 * d * f + f + d
    norms = 2 * d
    shared = (
        3 * (attention + 2 * norms) + 2 * network + norms + 2 * length * d
    )  # feed-forward networks of layer 0 and the query layer
    predicted = shared + 2 * network + words * d + words  # two experts of one group, one slot, one group's hash map
    with CheckpointReader.open(tmp_path / "part") as reader:
        entries = reader.manifest.tensors.values()
        assert sum(int(np.prod(entry.shape)) for entry in entries) == predicted
        headers = 200 * len(entries)  # generous: names and places
        assert 4 * predicted < sum(reader.manifest.shards.values()) < 4 * predicted + headers


def test_the_folder_needs_nothing_else(workshop, tmp_path):
    """Configuration, tokenizer and weights; the data's own name leads nowhere."""
    prepare = {"sources": {"one": "texts/one", "two": "texts/two"}, "clusters": {"count": 4}}
    config = workshop.config(
        {"dense_layers": 0, "sparse_layers": 1},
        {"router": {"type": "hash"}},
        data={"path": str(workshop.data.path), "placement": "domain_cluster_by_node", "prepare": prepare},
        parallel={"expert": 4},
    )
    source = workshop.save(
        workshop.random_model(
            workshop.config({"dense_layers": 0, "sparse_layers": 1}, {"router": {"type": "hash"}})
        )._replace(config=config),
        tmp_path / "run",
    )
    target = tmp_path / "part"
    extract(str(source), str(target), "two", shards=2)
    found = load_config(target / "config.yaml")
    assert (found.moe.num_experts, found.moe.num_groups, found.parallel.expert) == (2, 1, 1)
    assert found.data.prepare.sources == {"two": "texts/two"}
    assert (found.data.placement, found.data.prepare.clusters.count) == ("shuffled", 0)
    assert Path(found.data.prepare.tokenizer) == target / "tokenizer.model"
    assert describe_file(target / "tokenizer.model").sha256 == workshop.data.manifest.tokenizer_sha256
    assert found.checkpoint.initial == str(target)
    with CheckpointReader.open(target) as reader:
        header = reader.header
        assert (header.contents, header.step, header.data.domains) == ("weights", 7, ("two",))
        assert header.origin == (f"domain two of {source}, step 7",)
        assert [name for name in reader.names() if name.startswith(("adam", "capacity"))] == []


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("texts", ("text", "domain")),  # no record is left that a name of a field could be of
        ("plain.jsonl", ("\u6b63\u6587", "domain")),
        ("labelled.jsonl", ("\u6b63\u6587", "\u7c7b\u522b")),
        ("not here", ("\u6b63\u6587", "\u7c7b\u522b")),
    ],
)
def test_prepare_takes_the_configuration_whatever_fields_the_other_domains_have(workshop, tmp_path, name, keys):
    (tmp_path / "texts").mkdir()
    for place in ("a", "b"):
        (tmp_path / "texts" / f"{place}.txt").write_text(place)
    for file, label in (("plain", {}), ("labelled", {"\u7c7b\u522b": "one"})):
        records = [json.dumps({"\u6b63\u6587": text, **label}) for text in "ab"]
        (tmp_path / f"{file}.jsonl").write_text("\n".join(records))
    sources = {"one": str(tmp_path / name), "two": str(tmp_path / "labelled.jsonl")}
    prepare = {"sources": sources, "text_key": "\u6b63\u6587", "domain_key": "\u7c7b\u522b"}
    config = workshop.config({}, {"router": {"type": "hash"}}, data={"path": "data", "prepare": prepare})
    found = config_of_domain(config, Domain(0, "one", 0, 2, 2, 2), "part", None).data.prepare
    assert (found.text_key, found.domain_key) == keys
    if name != "not here":
        check_keys(found, [survey("one", found.sources["one"], found)])


def test_moments_go_with_their_weights(workshop, tmp_path):
    """Experts 2 and 3 become 0 and 1, with what the optimizer knows of them."""
    model = workshop.random_model(
        workshop.config(
            {"dense_layers": 0, "sparse_layers": 1, "domain_embeddings": True}, {"router": {"type": "switch"}}
        )
    )
    source = workshop.save(model, tmp_path / "run")
    extract(str(source), str(tmp_path / "part"), "two", keep_optimizer=True)
    with CheckpointReader.open(source) as old, CheckpointReader.open(tmp_path / "part") as new:
        assert new.header.contents == "training" and new.header.scalars["optimizer.updates"] == 0.0
        for prefix in ("", "adam_m.", "adam_v."):
            for name in ("w_in", "w_out", "b_in", "b_out"):
                bank = f"{prefix}blocks.0.feed_forward.experts.{name}"
                for expert in (0, 1):
                    np.testing.assert_array_equal(new.read(f"{bank}@{expert}"), old.read(f"{bank}@{expert + 2}"))
            table, gate = f"{prefix}embedding.word", f"{prefix}blocks.0.feed_forward.routing.router.gate.weight"
            np.testing.assert_array_equal(new.read(table), old.read(table)[320:])
            np.testing.assert_array_equal(new.read(gate), old.read(gate)[2:])
        assert not any(name.endswith(("@2", "@3")) for name in new.names())


def test_a_wrong_domain_or_tokenizer_is_named(workshop, tmp_path):
    source = workshop.save(
        workshop.random_model(workshop.config({"dense_layers": 0, "sparse_layers": 1}, {"router": {"type": "hash"}})),
        tmp_path / "run",
    )
    (tmp_path / "other.model").write_text("other")
    for options, message in (
        ({"domain": "three"}, "--domain three: expected one of one, two, or a number from 0 to 1"),
        ({"domain": "2"}, "--domain 2: expected one of"),
        ({"domain": "one", "tokenizer": str(tmp_path / "absent")}, "--tokenizer .*absent: no such file"),
        ({"domain": "one", "tokenizer": str(tmp_path / "other.model")}, "not the file that the model was trained"),
    ):
        with pytest.raises(InputError, match=message):
            extract(str(source), str(tmp_path / "part"), **options)
    assert not (tmp_path / "part").exists()
    with pytest.raises(
        InputError, match=r"part\\udce9: the name, .*, holds half of a surrogate pair or bytes that are no text"
    ):
        extract(str(source), str(tmp_path / "part\udce9"), "one")
    assert not (tmp_path / "part\udce9").exists()
