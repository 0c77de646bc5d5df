"""`prepare` with clusters of documents: which rows lie where, what is told and kept, and folders without any."""

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict, List

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from locmoe_ops.topology import Topology
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import validate
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.loader import create_loader
from pangu_sigma.data.prepare import prepare
from pangu_sigma.data.tokenizer import Tokenizer

MakeConfig = Callable[..., Config]
# Two topics in each domain, whose words no other text has; the second domain has more and shorter documents.
TOPICS = {
    "news": (["harvest", "wheat", "tractor", "barley"], ["striker", "goalkeeper", "penalty", "league"]),
    "code": (["socket", "packet", "listen", "router"], ["matrix", "tensor", "gradient", "kernel"]),
}
WORDS = {word: (domain, topic) for domain, pair in TOPICS.items() for topic, words in enumerate(pair) for word in words}


@pytest.fixture(scope="module")
def topic_sources(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, str]:
    """JSONL files of documents whose topics alternate."""
    folder, generator = tmp_path_factory.mktemp("topics"), random.Random(4)
    for domain, pair in TOPICS.items():
        count, words = (60, 60) if domain == "news" else (120, 30)
        texts = [" ".join(generator.choice(pair[n % 2]) for _ in range(words)) for n in range(count)]
        (folder / f"{domain}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {domain: str(folder / f"{domain}.jsonl") for domain in TOPICS}


def configured(make_config: MakeConfig, path: Path, sources: Dict[str, str], **clusters: object) -> Config:
    config = make_config(path, sources)
    settings = replace(config.data.prepare, clusters=replace(config.data.prepare.clusters, **clusters))
    return replace(config, data=replace(config.data, prepare=settings))


def topics_of_rows(data: PreparedData, split: str, domain: int) -> List[set]:
    """The topics of the whole words of each row."""
    tokenizer = Tokenizer.load(data.tokenizer_path)
    found = []
    for row in data.read(split, domain, range(data.rows(split, domain))):
        words = tokenizer.decode([int(token) for token in row if token >= 3 and token != tokenizer.end_of_text]).split()
        found.append({WORDS[word] for word in words if word in WORDS})
    return found


@pytest.mark.parametrize("within", ["corpus", "domain"])
def test_rows_lie_cluster_by_cluster(
    tmp_path: Path,
    topic_sources: Dict[str, str],
    make_config: MakeConfig,
    within: str,
    capsys: pytest.CaptureFixture,
) -> None:
    count = 4 if within == "corpus" else 2
    config = configured(make_config, tmp_path / "data", topic_sources, count=count, within=within)
    settings = replace(config.data.prepare, validation_fraction=0.03)  # topics stay of nearly equal size
    prepare(replace(config, data=replace(config.data, prepare=settings)))
    told = capsys.readouterr().out.splitlines()
    data = PreparedData.open(str(tmp_path / "data"), verify=True)
    clusters = data.manifest.clusters
    assert clusters is not None and clusters.within == within
    for split in ("train", "validation"):
        for domain in range(2):
            topics, counts = topics_of_rows(data, split, domain), data.cells(split)[domain]
            assert len(counts) == count and sum(counts) == data.rows(split, domain) == len(topics)
            main = []
            for end, size in zip(np.cumsum(counts).tolist(), counts):
                of_rows = Counter(topic for row in topics[end - size : end] for topic in row)
                main += [topic for topic, _ in of_rows.most_common(1) if size > 2]
                # A larger topic's surplus of a document or two, of a row or two each, and the row that begins before.
                assert sum(of_rows.values()) - max(of_rows.values(), default=0) <= 6
            assert split == "validation" or sorted(main) == [(data.domains[domain], topic) for topic in range(2)]
    rows = np.array(clusters.rows["train"])
    sizes = rows.sum(axis=0) if within == "corpus" else rows.ravel()
    of_equal_share = (
        np.abs(sizes / sizes.mean() - 1) if within == "corpus" else np.ptp(rows, axis=1) / rows.mean(axis=1)
    )
    assert (of_equal_share < 0.35).all(), rows  # domains of unlike size; documents chosen by hash, whole
    assert all(sum(pieces) == data.manifest.documents["train"][d] for d, pieces in enumerate(clusters.pieces))
    heads = [line for line in told if line.startswith("  clusters of ")]
    assert [line.split()[2] for line in heads] == (["corpus:"] if within == "corpus" else ["news:", "code:"])
    assert sum(line.startswith("    ") for line in told) == 4
    assert all(0.3 < float(line.split("silhouette ")[1].split(";")[0]) <= 1.0 for line in heads)


def test_the_text_is_that_without_clusters(
    tmp_path: Path, topic_sources: Dict[str, str], make_config: MakeConfig
) -> None:
    """All documents are written once, in another order, but for the tail that fills no row."""
    for name, count in (("with", 2), ("without", 0)):
        prepare(configured(make_config, tmp_path / name, topic_sources, count=count))
    found, plain = (PreparedData.open(str(tmp_path / name)) for name in ("with", "without"))
    assert found.manifest.rows == plain.manifest.rows and found.manifest.documents == plain.manifest.documents
    assert plain.manifest.clusters is None and plain.cells("train") == tuple((n,) for n in plain.manifest.rows["train"])
    for domain in range(2):
        tails = np.abs(found.domain_token_counts[domain] - plain.domain_token_counts[domain]).sum()
        assert tails <= 2 * 32  # less than a row of each


def test_a_seed_gives_the_same_folder(tmp_path: Path, topic_sources: Dict[str, str], make_config: MakeConfig) -> None:
    manifests = []
    for name in ("a", "b"):
        prepare(configured(make_config, tmp_path / name, topic_sources, count=3))
        manifests.append(PreparedData.open(str(tmp_path / name)).manifest)
    assert manifests[0].clusters == manifests[1].clusters and manifests[0].clusters is not None
    assert manifests[0].fingerprint == manifests[1].fingerprint


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"count": 3}, True),
        ({"within": "domain"}, True),
        ({"dimensions": 8}, True),
        ({"seed": 9}, True),
        ({"count": 0}, True),
        ({}, False),
    ],
)
def test_a_change_of_clusters_writes_the_folder_anew(
    clustered_folder: Path,
    tmp_path: Path,
    topic_sources: Dict[str, str],
    make_config: MakeConfig,
    change: Dict[str, object],
    anew: bool,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = shutil.copytree(clustered_folder, tmp_path / "data")
    before = PreparedData.open(str(folder)).manifest.fingerprint
    prepare(configured(make_config, folder, topic_sources, **{"count": 2, **change}))
    told = capsys.readouterr().out
    assert ("up to date" in told) != anew and ("clusters of " in told) == (change != {"count": 0})
    assert (PreparedData.open(str(folder)).manifest.fingerprint != before) == anew


@pytest.fixture(scope="module")
def clustered_folder(topic_sources: Dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clustered") / "data"
    config = config_from_dict(
        {
            "model": {"sequence_length": 32},
            "data": {
                "path": str(folder),
                "prepare": {
                    "vocab_size": 400,
                    "validation_fraction": 0.2,
                    "sources": topic_sources,
                    "clusters": {"count": 2},
                },
            },
        }
    )
    prepare(config)
    return folder


def read_on_nodes(folder: Path, placement: str, mixing: str = "balanced") -> List[set]:
    """(domain, row) that each of two nodes of one rank reads in ten steps, by its tokens."""
    config = config_from_dict(
        {
            "model": {"sequence_length": 32},
            "data": {"path": str(folder), "placement": placement, "mixing": mixing},
            "moe": {"num_groups": 1},
            "train": {"global_batch_size": 8, "micro_batch_size": 4, "eval_rows": 8},
        }
    )
    data, found = PreparedData.open(str(folder)), []
    for rank in range(2):
        loader = create_loader(config, data, Topology(2, 1, 2), rank, 2)
        batches = [batch for step in range(10) for batch in loader.step(step)]
        found.append({tuple(row) for batch in batches for row in batch.ids.tolist()})
        assert len(loader.validation()) >= 1
        loader.close()
    return found


def test_the_loader_reads_clusters_on_nodes(clustered_folder: Path) -> None:
    """Two clusters, of one domain each, on two nodes of one expert group: hardly any row is read on both; shuffled, the
    same rows are, wherever they fall.
    """
    data = PreparedData.open(str(clustered_folder))
    rows = [{tuple(row[:-1]) for row in data.read("train", d, range(data.rows("train", d))).tolist()} for d in range(2)]
    assert sorted(max(cells) for cells in data.cells("train")) == sorted(data.manifest.rows["train"])
    placed, plain = read_on_nodes(clustered_folder, "clustered"), read_on_nodes(clustered_folder, "shuffled")
    assert placed[0] | placed[1] == plain[0] | plain[1]
    shares = [[len(read & of_domain) / len(read) for of_domain in rows] for read in placed]
    assert {tuple(np.round(share)) for share in shares} == {(0.0, 1.0), (1.0, 0.0)}
    assert all(0.2 < len(read & of_domain) / len(read) < 0.8 for read in plain for of_domain in rows)


def test_a_folder_without_clusters_is_refused_where_they_are_placed(
    prepared_folder: Path, make_config: MakeConfig, tmp_path: Path, corpora: Dict[str, str]
) -> None:
    with pytest.raises(
        InputError, match=r"the prepared data has no clusters; .* --set data\.prepare\.clusters\.count=2"
    ):
        read_on_nodes(prepared_folder, "clustered")
    config = make_config(tmp_path / "data", corpora)
    config = replace(config, data=replace(config.data, placement="clustered"))
    with pytest.raises(InputError, match=r"data\.placement is clustered, but data\.prepare\.clusters\.count is 0"):
        prepare(config)


@pytest.mark.parametrize(
    ("within", "message"),
    [("corpus", "the corpus has 39 training"), ("domain", "domain 'en' has 13 training")],
)
def test_more_clusters_than_documents_are_refused(
    tmp_path: Path, corpora: Dict[str, str], make_config: MakeConfig, within: str, message: str
) -> None:
    for folder in corpora.values():
        for path in sorted(Path(folder).iterdir())[16:]:
            path.unlink()
    with pytest.raises(InputError, match=r"data\.prepare\.clusters\.count is 60, but .* training documents"):
        prepare(configured(make_config, tmp_path / "data", corpora, count=60, within=within))
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_a_folder_of_before_clusters_opens_and_is_up_to_date(
    prepared_folder: Path, tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture
) -> None:
    folder = shutil.copytree(prepared_folder, tmp_path / "data")
    content = json.loads((folder / "manifest.json").read_text())
    assert content.pop("clusters") is None
    (folder / "manifest.json").write_text(json.dumps(content))
    data = PreparedData.open(str(folder), verify=True)
    assert data.manifest.clusters is None and data.cells("validation") == tuple(
        (rows,) for rows in data.manifest.rows["validation"]
    )
    sources = {name: str(prepared_folder.parent / "corpora" / name) for name in data.domains}
    prepare(make_config(folder, sources))
    assert capsys.readouterr().out == f"{folder}: up to date\n"


@pytest.mark.parametrize(
    "change",
    [
        {"within": "node"},
        {"rows": {"train": [[1], [2]], "validation": [[1], [1]]}},
        {"rows": 7},
        {"pieces": [[1, 2, 3], [4, 5]]},
        {"separation": [{"silhouette": 0.1}]},
    ],
)
def test_a_record_of_clusters_that_is_none_is_refused(
    clustered_folder: Path, tmp_path: Path, change: Dict[str, object]
) -> None:
    folder = shutil.copytree(clustered_folder, tmp_path / "data")
    content = json.loads((folder / "manifest.json").read_text())
    content["clusters"].update(change)
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"manifest\.json: a field is missing or malformed"):
        PreparedData.open(str(folder))


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        ({"count": 1}, r"data\.prepare\.clusters\.count is 1, which tells no text apart; expected 0, or 2 and more"),
        (
            {"within": "domain"},
            r"data\.prepare\.clusters\.within is domain with .* 0, .*; expected corpus, its default",
        ),
        ({"dimensions": 8}, r"data\.prepare\.clusters\.dimensions is 8 with .*; expected 64, its default"),
        ({"seed": 2}, r"data\.prepare\.clusters\.seed is 2 with .*; expected 1, its default"),
        ({"count": 4, "within": "domain", "dimensions": 8, "seed": 2}, None),
    ],
)
def test_keys_of_clusters_that_nothing_uses_are_refused(clusters: Dict[str, object], message: str) -> None:
    config = config_from_dict({"data": {"prepare": {"clusters": clusters}}})
    if message is None:
        validate(config, 1)
    else:
        with pytest.raises(InputError, match=message):
            validate(config, 1)
