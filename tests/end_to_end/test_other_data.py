"""From other people's data to a model: JSONL and Parquet with fields of their own names, domains in Chinese,
a weighted mixture, Hugging Face's tokenizer.json; and everything that comes after training, with the data gone.
"""

import hashlib
import json
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml

from helpers.hugging_face import byte_level
from pangu_sigma.checkpoint.reader import CheckpointReader
from pangu_sigma.cli.main import main
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.tokenizer import Tokenizer

NAME, DOMAINS = "tokenizer.json", ("百科", "代码")
WEIGHTS = {"百科": 3, "代码": 1}
LETTERS = {"百科": "天下大势分久必合国家人民", "代码": "abcdefghij()=:"}


def command(*words, status=0):
    assert main([str(word) for word in words]) == status


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, whose data are gone."""
    root = tmp_path_factory.mktemp("其他数据")
    generator = np.random.default_rng(0)
    records = [
        {"content": "".join(generator.choice(list(LETTERS[domain]), 600)), "source": domain}
        for domain in DOMAINS
        for _ in range(30)
    ]
    records = [records[number] for number in generator.permutation(len(records))]
    half = len(records) // 2
    (root / "all").mkdir()
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records[:half])
    (root / "all" / "数据.jsonl").write_text(lines, encoding="utf-8")
    table = pyarrow.table({name: [record[name] for record in records[half:]] for name in records[0]})
    pyarrow.parquet.write_table(table, root / "all" / "数据.parquet")
    byte_level(root / "given.json", [record["content"] for record in records], 400)
    prepare = {"text_key": "content", "domain_key": "source", "tokenizer": str(root / "given.json")}
    prepare.update(sources=dict.fromkeys(DOMAINS, str(root / "all")), validation_fraction=0.2)
    sections = {
        "model": {"hidden_size": 16, "num_heads": 2, "dense_layers": 1, "sparse_layers": 1, "sequence_length": 32},
        "moe": {"num_experts": 4, "num_groups": 2},
        "data": {"path": str(root / "data"), "mixing": "weighted", "weights": WEIGHTS, "prepare": prepare},
        "optimizer": {"warmup_steps": 1},
        "runtime": {"mode": "pynative"},
        "train": {"steps": 2, "global_batch_size": 4, "eval_rows": 4, "cosines": False, "tensorboard": True},
    }
    sections["train"]["output_dir"] = str(root / "运行")
    (root / "config.yaml").write_text(yaml.safe_dump(sections, sort_keys=False, allow_unicode=True), encoding="utf-8")
    command("prepare", root / "config.yaml")
    command("train", root / "config.yaml")
    PreparedData.open(str(root / "data"), verify=True)
    shutil.move(root / "data", root / "moved")
    return root / "运行"


def test_the_checkpoint_carries_the_tokenizer_and_names_the_domains(run):
    written = (run.parent / "moved" / NAME).read_bytes()
    with CheckpointReader.open(run / "checkpoints" / "step_2") as reader:
        assert list(reader.manifest.files) == [NAME] and reader.header.data.domains == DOMAINS
        assert reader.read_file(NAME) == written
        assert reader.header.data.tokenizer_sha256 == hashlib.sha256(written).hexdigest()
        assert reader.header.sampler["data.weights"] == WEIGHTS


def test_the_model_is_asked_by_the_names_of_its_domains(run, tmp_path, capsys):
    command("generate", run / "config.yaml", "--prompt", "天下", "--domain", "百科", "--max-new-tokens", 4)
    assert "天下" in capsys.readouterr().out
    table = pyarrow.table({"content": ["天下大势" * 40, "abc = (d)" * 20], "source": list(DOMAINS)})
    pyarrow.parquet.write_table(table, tmp_path / "text.parquet")
    given = ("--text", f"代码={tmp_path / 'text.parquet'}", "--output", tmp_path / "found")
    command("eval", run / "config.yaml", *given, "--set", "checkpoint.resume=auto")
    results = json.loads((tmp_path / "found" / "results.json").read_text(encoding="utf-8"))["results"]
    (found,) = results.values()
    assert "代码" in found and "百科" not in found
    assert "代码" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["safetensors", "hf-pangu-alpha", "mindformers-pangu-alpha"])
def test_exports_hold_the_tokenizer(run, tmp_path, form):
    dense = () if form == "safetensors" else ("--dense-part",)
    command("export", run / "config.yaml", "--format", form, "--output", tmp_path / "out", *dense)
    assert (tmp_path / "out" / NAME).read_bytes() == (run.parent / "moved" / NAME).read_bytes()
    assert not (tmp_path / "out" / "tokenizer.model").exists()


def test_a_model_of_one_domain_trains_on(run, tmp_path):
    """Its folder holds the tokenizer, which its data are prepared with; there is nothing left to weigh."""
    folder = tmp_path / "一"
    command("ckpt", "extract", run, folder, "--domain", "百科")
    content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert content["data"]["prepare"]["tokenizer"] == str(folder / NAME)
    assert (content["data"]["mixing"], content["data"]["weights"]) == ("balanced", None)
    keys = ("--set", f"data.path={tmp_path / 'data'}", "--set", f"train.output_dir={tmp_path / 'run'}")
    command("prepare", folder / "config.yaml", *keys)
    assert (tmp_path / "data" / NAME).read_bytes() == (folder / NAME).read_bytes()
    command("train", folder / "config.yaml", *keys, "--set", "train.steps=2")
    tokenizer = Tokenizer.load(str(folder / NAME))
    data = PreparedData.open(str(tmp_path / "data"))
    assert data.read("train", 0, [0])[0, 0] == tokenizer.domain_tags["百科"]


def test_reports_show_the_run(run, tmp_path, capsys):
    command("summary", run)
    assert "perplexity" in capsys.readouterr().out
    command("report", run, "--output", tmp_path / "页.html")
    assert "perplexity" in (tmp_path / "页.html").read_text(encoding="utf-8")
    assert list((run / "tensorboard").iterdir())


def test_weights_of_other_domains_are_refused_before_anything_is_written(run, tmp_path, capsys):
    keys = ("--set", f"data.path={run.parent / 'moved'}", "--set", f"train.output_dir={tmp_path / 'run'}")
    command("train", run / "config.yaml", *keys, "--set", "data.weights={百科: 1, code: 2}", status=2)
    assert "data.weights: has no weight for 代码; expected one for each domain" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
