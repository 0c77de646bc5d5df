"""Whatever a user gives wrong: status 2, one line on stderr that names what to mend, and nothing on disk changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable, NamedTuple

import pytest

from pangu_sigma.cli.main import main

CONFIG = """\
model: {hidden_size: 16, num_heads: 2, dense_layers: 1, sparse_layers: 1, sequence_length: 16}
moe: {num_experts: 4, num_groups: 2}
data:
  path: data
  prepare: {sources: {en: texts, zh: records.jsonl}, vocab_size: 400, validation_fraction: 0.3}
optimizer: {warmup_steps: 1}
train: {steps: 2, global_batch_size: 2, output_dir: run, cosines: false}
runtime: {device: cpu}
"""


def _nothing(folder: Path) -> None:
    """The workspace as it is."""


def _write(name: str, content: object) -> Callable[[Path], None]:
    """Puts text, bytes, or a value as JSON into a file of the workspace."""
    if isinstance(content, str):
        data = content.encode("utf-8")
    else:
        data = content if isinstance(content, bytes) else json.dumps(content).encode("utf-8")

    def spoil(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return spoil


def _remove(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def _cut_in_half(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def _flip_a_bit(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return spoil


def _alter_manifest(**fields: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "data" / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return spoil


class Case(NamedTuple):
    arguments: str  # of `pangu-sigma`, separated by spaces
    fragment: str  # of the one line on stderr
    spoil: Callable[[Path], None] = _nothing
    own_process: bool = False  # as the shell would start it


ARGUMENTS = [
    Case("", "COMMAND", own_process=True),
    Case("trian config.yaml", "invalid choice: 'trian'"),
    Case("train", "required: CONFIG", own_process=True),
    Case("train config.yaml other.yaml", "unrecognized arguments: other.yaml"),
    Case("train config.yaml --sett a=b", "unrecognized arguments: --sett"),
    Case("train config.yaml --set", "argument --set: expected one argument"),
    Case("train config.yaml --set train.steps", "'train.steps': expected key.path=value"),
    Case("train config.yaml --set train.steps=[", "--set train.steps=[: not valid YAML"),
    Case("bench", "required: WHAT"),
    Case("bench stpe config.yaml", "invalid choice: 'stpe'"),
    Case("bench all-to-all config.yaml", "expected to run under msrun, as pangu-sigma launch --bench all-to-all does"),
    Case("bench all-to-all config.yaml --rate fast", "argument --rate: invalid rate, as in 200mbit, value: 'fast'"),
    Case(
        "bench all-to-all config.yaml --tokens 64,x",
        "argument --tokens: invalid list of positive integers, as in 64,256, value: '64,x'",
    ),
    Case("bench all-to-all config.yaml --layer=-1", "argument --layer: invalid integer from 0 value: '-1'"),
    Case("eval config.yaml --trace-tokens 64", "--trace-rows and --trace-tokens say what --trace FILE is to hold"),
    Case("eval config.yaml --trace x --trace-rows test", "argument --trace-rows: invalid choice: 'test'"),
    Case("trace config.yaml", "trace config.yaml: is no whole safetensors file; expected a file that eval --trace"),
    Case("trace absent", "trace absent: cannot be read (no such file or directory)"),
    Case("train config.yaml --set moe.router.type=replay", "moe.router.replay.trace is null; expected a file that"),
    Case(
        "train config.yaml --set moe.router.type=replay --set moe.router.replay.trace=config.yaml",
        "moe.router.replay.trace config.yaml: is no whole safetensors file",
    ),
    Case("bench router config.yaml --tokens 64", "unrecognized arguments: --tokens"),
    Case("bench router config.yaml --set moe.num_experts=3", "moe.num_groups (2) does not divide moe.num_experts (3)"),
    Case("config config.yaml --ranks none", "argument --ranks: invalid positive integer value: 'none'"),
    Case("config config.yaml --key train.step", "--key train.step: no such key"),
]

CONFIGURATION = [
    Case("train absent.yaml", "absent.yaml: cannot be read", own_process=True),
    Case("train texts", "texts: found neither run nor checkpoint in this folder; expected a YAML configuration"),
    Case("eval data", "data: found neither run nor checkpoint in this folder"),
    Case("train kept/checkpoints/step_2", "step_2: found a checkpoint; expected a configuration or a run"),
    Case("train config.yaml", "config.yaml: the file is empty", _write("config.yaml", " \n")),
    Case("train config.yaml", "config.yaml: not UTF-8 text", _write("config.yaml", b"train: \xff")),
    Case("train config.yaml", "config.yaml: line 2 not valid YAML", _write("config.yaml", "a: b\n  c: d\n")),
    Case("train config.yaml", "config.yaml: found ['train'] at top level", _write("config.yaml", "- train\n")),
    Case("train config.yaml", "key 'train' is given twice", _write("config.yaml", "train: {}\ntrain: {}\n")),
    Case("train config.yaml", "not valid YAML", _write("config.yaml", "train: !!python/name:os.system")),
    Case("train config.yaml --set trian.steps=3", "trian: unknown key, did you mean train?"),
    Case("train config.yaml --set moe.router.typ=hash", "moe.router.typ: unknown key, did you mean moe.router.type?"),
    Case("train config.yaml --set model.steps=3", "model.steps: unknown key, did you mean train.steps?"),
    Case("train config.yaml --set train=3", "train: found 3, expected a section"),
    Case("train config.yaml --set train.steps=many", "train.steps: found 'many', expected an integer >= 1"),
    Case("train config.yaml --set train.steps=true", "train.steps: found true, expected an integer"),
    Case("train config.yaml --set train.steps=0", "train.steps: found 0, expected an integer >= 1"),
    Case("train config.yaml --set train.output_dir=null", "train.output_dir: found null, expected a string"),
    Case("train config.yaml --set optimizer.beta1=2", "optimizer.beta1: found 2, expected a number >= 0.0 and <="),
    Case(
        "train config.yaml --set moe.router.type=swich",
        "moe.router.type: found 'swich', expected one of c2r, etr, fast",
    ),
    Case("train config.yaml --set moe.domain_groups=0", "moe.domain_groups: found 0, expected a list"),
    Case("config config.yaml --set model.num_heads=3", "model.num_heads (3) does not divide model.hidden_size (16)"),
    Case("config config.yaml --set moe.num_groups=3", "moe.num_groups (3) does not divide moe.num_experts (4)"),
    Case("config config.yaml --set moe.num_experts=6", "the 3 experts of a group (moe.num_experts 6"),
    Case("config config.yaml --set moe.router.top_k=3", "moe.router.top_k (3) exceeds the 2 experts"),
    Case("config config.yaml --set moe.router={type:\u00a0gshard,top_k:\u00a01}", "moe.router.top_k is 1 with"),
    Case(
        "config config.yaml --set moe={router:\u00a0{type:\u00a0hash},dispatch:\u00a0{overflow:\u00a0repick}}",
        "overflow is repick with",
    ),
    Case(
        "config config.yaml --set moe.dispatch.ragged_limit=2",
        "moe.dispatch.ragged_limit is 2.0 with moe.dispatch.type flat",
    ),
    Case(
        "config config.yaml --set moe.dispatch={type:\u00a0ragged,chunks:\u00a02}",
        "moe.dispatch.chunks is 2 with moe.dispatch.type rag",
    ),
    Case("config config.yaml --set moe.domain_groups=[0,2]", "moe.domain_groups[1] is 2"),
    Case("config config.yaml --set parallel.expert=2", "parallel.expert x parallel.tensor (2) does not divide"),
    Case(
        "config config.yaml --set moe.logical_topology.world_size=3",
        "moe.logical_topology.world_size (3) does not divide train.global",
    ),
    Case("config config.yaml --ranks 4", "data-parallel ranks (4) does not divide train.global_batch_size (2)"),
    Case("config config.yaml --set train.stop_after=9", "train.stop_after (9) is beyond train.steps (2)"),
    Case("config config.yaml --set optimizer.warmup_steps=9", "optimizer.warmup_steps (9) is beyond the end of decay"),
    Case("train config.yaml --set runtime.precision=bf16", "runtime.precision bf16 is not supported on CPU"),
    Case("train config.yaml --set runtime.backend=hccl", "runtime.backend hccl does not run on runtime.device cpu"),
    Case("train config.yaml --set model.num_heads=3", "model.num_heads (3)", own_process=True),
    Case("train config.yaml --set train.output_dir=data/run", "train.output_dir (data/run) lies inside data.path"),
]

CORPUS = [
    Case("prepare config.yaml --set data.prepare.sources={}", "data.prepare.sources"),
    Case("prepare config.yaml --set data.prepare.sources.fr=absent", ".fr: 'absent' does not exist"),
    Case("prepare config.yaml --set data.prepare.sources.e/n=texts", "'e/n'"),
    Case("prepare config.yaml --set data.prepare.sources.en=data", "data.prepare.sources.en (data) lies inside"),
    Case("prepare config.yaml --set data.prepare.sources.en=png", "no text files in 'png'", _write("png/a.png", b"P")),
    Case("prepare config.yaml --set data.prepare.sources.en=a.png", "a.png' has an unknown", _write("a.png", b"P")),
    Case("prepare config.yaml", "texts/c.txt: not UTF-8", _write("texts/c.txt", b"caf\xe9")),
    Case(
        "prepare config.yaml",
        "no documents of domain 'zh'; expected at least one; passed over 1 file: 1 empty (records.jsonl)",
        _write("records.jsonl", "\n"),
    ),
    Case(
        "prepare config.yaml",
        "records.jsonl:1: broken JSON (an integer of 5000 digits)",
        _write("records.jsonl", "7" * 5000),
    ),
    Case(
        "prepare config.yaml",
        "domain 'zh' holds 2 documents, all with the same text",
        _write("records.jsonl", '{"text": "a"}\n{"text": "a"}\n'),
    ),
    Case("prepare config.yaml", "records.jsonl:2: broken JSON", _write("records.jsonl", '{"text": "a"}\n{"text": "b')),
    Case("prepare config.yaml", "records.jsonl:1: found a list", _write("records.jsonl", ["text"])),
    Case("prepare config.yaml", "records.jsonl:1: field `text` is missing", _write("records.jsonl", {"txt": "a"})),
    Case("prepare config.yaml", "records.jsonl:1: field `text` is a number", _write("records.jsonl", {"text": 1})),
    Case("prepare config.yaml", "records.jsonl:1: field `text`", _write("records.jsonl", {"text": "\ud800"})),
    Case("prepare config.yaml", "field `domain` is a number", _write("records.jsonl", {"text": "a", "domain": 1})),
    Case("prepare config.yaml", "no documents of domain 'zh'", _write("records.jsonl", {"text": "a", "domain": "en"})),
    Case("prepare config.yaml", "domain 'zh' is a single document", _write("records.jsonl", {"text": "a"})),
    Case("prepare config.yaml --set model.sequence_length=4000", "texts: domain 'en' fills no train row"),
    Case("prepare config.yaml --set data.path=texts", "data.prepare.sources.en (texts) lies inside data.path (texts)"),
    Case(
        "prepare config.yaml --set data.path=run --set train.output_dir=new",
        "holds files, but no manifest.json that prepare wrote",
    ),
    Case("prepare config.yaml --set data.path=config.yaml", "config.yaml is a file"),
]

TOKENIZER = [
    Case("prepare config.yaml --set data.prepare.tokenizer=absent.model", "absent.model: cannot be read"),
    Case("prepare config.yaml --set data.prepare.tokenizer=texts", "texts"),
    Case("prepare config.yaml --set data.prepare.tokenizer=texts/en0.txt", "texts/en0.txt: is no SentencePiece model"),
    Case("prepare config.yaml --set data.prepare.tokenizer=given.model", "given.model", _cut_in_half("given.model")),
    Case(
        "prepare config.yaml --set data.prepare.tokenizer=given.model --set data.prepare.sources.fr=texts",
        "'given.model' has no tag for fr",
    ),
    Case("prepare config.yaml --set data.prepare.vocab_size=100", "data.prepare.vocab_size: found 100, expected"),
]

DATA = [
    Case("train config.yaml", "'data' is no folder", _remove("data"), own_process=True),
    Case("train config.yaml --set data.path=run --set train.output_dir=new", "no manifest.json in 'run'"),
    Case("train config.yaml", "no manifest.json in 'data'", _remove("data/manifest.json")),
    Case("train config.yaml", "data/manifest.json: cannot be read", _cut_in_half("data/manifest.json")),
    Case("train config.yaml", "data/manifest.json: is not of this program", _write("data/manifest.json", "{}")),
    Case("train config.yaml", "data/manifest.json: version 99", _alter_manifest(version=99)),
    Case("train config.yaml", "data/manifest.json: a field is missing", _alter_manifest(rows=None)),
    Case("train config.yaml", "data/train-en.mindrecord: is missing", _remove("data/train-en.mindrecord")),
    Case("train config.yaml", "data/train-zh.mindrecord: found", _cut_in_half("data/train-zh.mindrecord")),
    Case("train config.yaml", "data/train-zh.mindrecord: checksum", _flip_a_bit("data/train-zh.mindrecord")),
    Case("train config.yaml", "data/token_counts.npy: checksum", _flip_a_bit("data/token_counts.npy")),
    Case("train config.yaml", "data/tokenizer.model: found", _cut_in_half("data/tokenizer.model")),
    Case("train config.yaml --set model.sequence_length=32", "model.sequence_length"),
    Case("train config.yaml --set model.vocab_size=10", "model.vocab_size"),
    Case("train config.yaml --set moe.domain_groups=[0]", "moe.domain_groups"),
    Case("train config.yaml --set moe.num_groups=4", "moe.num_groups"),
]

STEP = "kept/checkpoints/step_2"
RESUME = f"train config.yaml --set checkpoint.resume={STEP}"
CHECKPOINT = [
    Case("train config.yaml --set checkpoint.resume=nowhere", "nowhere: no manifest.json"),
    Case("train config.yaml --set checkpoint.resume=data", "data/manifest.json: not a checkpoint manifest"),
    Case("train config.yaml --set train.output_dir=kept", "holds an earlier run"),
    Case("train config.yaml --set train.output_dir=given.model", "given.model is a file"),
    Case(RESUME, "no manifest.json", _remove(f"{STEP}/manifest.json")),
    Case(RESUME, "not a checkpoint manifest", _cut_in_half(f"{STEP}/manifest.json")),
    Case(RESUME, "not a checkpoint manifest", _write(f"{STEP}/manifest.json", [1, 2])),
    Case(RESUME, "not a checkpoint manifest (format '', expected", _write(f"{STEP}/manifest.json", {"format": ""})),
    Case(
        RESUME,
        "format version 1, of an earlier release of this program; expected 2",
        _write(f"{STEP}/manifest.json", {"format_version": 1, "step": 2, "config": {}, "files": {}}),
    ),
    Case(
        RESUME,
        "format version 99; expected 2",
        _write(f"{STEP}/manifest.json", {"format": "pangu-sigma checkpoint", "version": 99}),
    ),
    Case(RESUME, "not a checkpoint manifest", _flip_a_bit(f"{STEP}/manifest.json")),
    Case(RESUME, "dense_0.safetensors: missing", _remove(f"{STEP}/dense_0.safetensors")),
    Case(RESUME, "dense_0.safetensors: ", _cut_in_half(f"{STEP}/dense_0.safetensors")),
    Case(RESUME, "dense_0.safetensors: tensor ", _flip_a_bit(f"{STEP}/dense_0.safetensors")),
    Case(RESUME, "experts_0_0.safetensors: tensor ", _flip_a_bit(f"{STEP}/experts_0_0.safetensors")),
    Case(f"{RESUME} --set model.hidden_size=32", "model.hidden_size is 32"),
    Case(f"{RESUME} --set moe.router.type=switch", "moe.router.type is switch"),
    Case(f"{RESUME} --set moe.num_experts=8", "moe.num_experts is 8"),
    Case(f"{RESUME} --set train.steps=1", "beyond train.steps"),
    Case(
        f"{RESUME} --set checkpoint.initial=kept",
        "checkpoint.initial is kept with checkpoint.resume kept/checkpoints/step_2",
    ),
    Case("train config.yaml --set checkpoint.initial=nowhere", "nowhere: no manifest.json"),
    Case(f"train config.yaml --set checkpoint.initial={STEP} --set model.num_heads=4", "model.num_heads is 4, but"),
    Case(
        "train config.yaml --set checkpoint={interval:\u00a04,keep_every:\u00a06}",
        "checkpoint.keep_every (6) is not a multiple",
    ),
    Case("train config.yaml --set checkpoint.keep_every=6", "checkpoint.keep_every is 6 with checkpoint.interval 0"),
    Case("train config.yaml --set checkpoint.keep=3", "checkpoint.keep: unknown key, did you mean checkpoint.keep_"),
]

CKPT = [
    Case("ckpt", "required: WHAT"),
    Case("ckpt inspect", "required: PATH"),
    Case("ckpt inspect nowhere", "nowhere: no manifest.json"),
    Case("ckpt inspect data", "data/manifest.json: not a checkpoint manifest"),
    Case("ckpt diff kept nowhere", "nowhere: no manifest.json"),
    Case("ckpt reshard kept new", "required: --shards"),
    Case("ckpt reshard kept new --shards 0", "argument --shards: invalid positive integer value: '0'"),
    Case("ckpt reshard kept new --shards 9999", "--shards 9999: there are only"),
    Case("ckpt reshard kept run --shards 2", "run: is there already"),
    Case(
        "ckpt reshard kept new --shards 2", "dense_0.safetensors: tensor ", _flip_a_bit(f"{STEP}/dense_0.safetensors")
    ),
    Case("ckpt extract kept new", "required: --domain"),
    Case("ckpt extract kept new --domain fr", "--domain fr: expected one of en, zh, or a number from 0 to 1"),
    Case("ckpt export-map kept", "required: TARGET"),
    Case("ckpt export-map nowhere new", "nowhere: no manifest.json"),
    Case("ckpt inherit config.yaml kept new", "has 1 sparse layers"),
    Case(
        "ckpt inherit config.yaml a.ckpt new",
        "--final-norm: a.ckpt does not say where the final norm stands",
        _write("a.ckpt", ""),
    ),
    Case(
        "ckpt inherit config.yaml a.ckpt new --final-norm after_query", "a.ckpt: cannot be read", _write("a.ckpt", "x")
    ),
    Case(
        "ckpt inherit config.yaml kept new --final-norm after_query", "--final-norm after_query: kept is no .ckpt file"
    ),
    Case("ckpt inherit config.yaml kept new --noise -1", "argument --noise: invalid number from 0 value: '-1'"),
]


def _plan(**changed: object) -> Callable[[Path], None]:
    """A comparison of one variant, with other keys, or keys otherwise, as given."""
    return _write("plan.yaml", {"base": "config.yaml", "variants": {"a": {"moe.router.type": "hash"}}, **changed})


TWO_NODES = {"nodes": 2, "ranks_per_node": 1}
COMPARISON = [
    Case("compare", "required: FILE", own_process=True),
    Case("compare absent.yaml", "absent.yaml: cannot be read"),
    Case("compare config.yaml", "config.yaml: model: unknown key, expected one of base, base_overrides, variants"),
    Case("compare plan.yaml", "plan.yaml: seed: unknown key, expected one of", _plan(seed=1)),
    Case(
        "compare plan.yaml",
        "plan.yaml: variants.a: moe.ruter: unknown key, did you mean moe.router?",
        _plan(variants={"a": {"moe.ruter": 1}}),
    ),
    Case(
        "compare plan.yaml",
        "plan.yaml: variants.a: train.steps: found 'x', expected an integer",
        _plan(variants={"a": {"train.steps": "x"}}),
    ),
    Case(
        "compare plan.yaml", "plan.yaml: variants.a: train.seed cannot be set", _plan(variants={"a": {"train.seed": 1}})
    ),
    Case("compare plan.yaml", "plan.yaml: baseline: found 'b', expected one of a", _plan(baseline="b")),
    Case(
        "compare plan.yaml",
        "plan.yaml: cluster.rate: found 'fast', expected null or a rate",
        _plan(cluster={**TWO_NODES, "rate": "fast"}),
    ),
    Case(
        "compare plan.yaml", "plan.yaml: cluster.rate is 1gbit with cluster.nodes 1", _plan(cluster={"rate": "1gbit"})
    ),
    Case("compare plan.yaml", "plan.yaml: base: absent.yaml: cannot be read", _plan(base="absent.yaml")),
    Case(
        "compare plan.yaml --report-only",
        "--report-only: no run of plan.yaml is finished in runs/compare/plan",
        _plan(),
    ),
    Case("compare plan.yaml --output config.yaml", "--output: config.yaml is a file", _plan()),
    Case("compare plan.yaml --dry-run --outptu x", "unrecognized arguments: --outptu", _plan()),
]

CASES = ARGUMENTS + CONFIGURATION + CORPUS + TOKENIZER + DATA + CHECKPOINT + CKPT + COMPARISON


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workspace in which everything is right: sources, prepared data, and an earlier run."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "texts").mkdir()
    records = []
    for number in range(12):
        (folder / "texts" / f"en{number}.txt").write_text(f"The {number} wise men went out to sea in a bowl. " * 9)
        records.append(json.dumps({"text": f"{number}個人走在路上。" * 20}, ensure_ascii=False) + "\n")
    (folder / "records.jsonl").write_text("".join(records))
    (folder / "run").mkdir()
    (folder / "run" / "notes.txt").write_text("not a run")
    _prepare_and_train_in(folder)
    shutil.copy(folder / "data" / "tokenizer.model", folder / "given.model")
    return folder


def _prepare_and_train_in(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["prepare", "config.yaml"]) == 0
        assert main(["train", "config.yaml", "--set", "train.output_dir=kept"]) == 0
        shutil.rmtree("rank_0", ignore_errors=True)  # MindSpore's own notes on the compilation
    finally:
        os.chdir(before)


@pytest.fixture
def run(capsys):
    """Runs `pangu-sigma` with the arguments of a case; returns its exit status and what it wrote to stderr."""

    def _run(case):
        # A no-break space stands for a space inside an argument.
        arguments = [argument.replace("\u00a0", " ") for argument in case.arguments.split(" ") if argument]
        if case.own_process:
            done = subprocess.run([sys.executable, "-m", "pangu_sigma", *arguments], capture_output=True, text=True)
            return done.returncode, done.stderr
        capsys.readouterr()
        return main(arguments), capsys.readouterr().err

    return _run


def _left_on_screen(text):
    """Lines as a terminal ends up showing them: a progress bar goes back to the start of its line and wipes it."""
    return [line for line in (line.rpartition("\r")[2] for line in text.split("\n")) if line.strip()]


def _contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.arguments or 'nothing'}: {case.fragment}")
def test_bad_input_is_named_and_nothing_is_touched(whole, tmp_path, monkeypatch, run, case):
    folder = tmp_path / "workspace"
    shutil.copytree(whole, folder)
    case.spoil(folder)
    monkeypatch.chdir(folder)
    before = _contents(folder)
    status, stderr = run(case)
    assert status == 2, stderr
    lines = _left_on_screen(stderr)
    assert len(lines) == 1, stderr
    assert lines[0].startswith("pangu-sigma: error: ")
    assert case.fragment in lines[0]
    assert _contents(folder) == before
