import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Callable, Dict, List

import pyarrow
import pyarrow.parquet
import pytest

from helpers.hugging_face import byte_fallback, byte_level
from locmoe_ops.errors import InputError
from pangu_sigma.config.load import save_config
from pangu_sigma.config.schema import Config
from pangu_sigma.data import prepare as prepare_module
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.prepare import prepare
from pangu_sigma.data.tokenizer import Tokenizer, train_tokenizer
from pangu_sigma.errors import OutputNotWritten

Corpora = Dict[str, str]
MakeConfig = Callable[..., Config]


def stream(data: PreparedData, split: str, domain: int) -> List[int]:
    """Ids of all rows, each id once."""
    rows = data.read(split, domain, range(data.rows(split, domain)))
    for before, after in zip(rows[:-1], rows[1:]):
        assert before[-1] == after[0]
    return [int(rows[0, 0]), *(int(i) for row in rows for i in row[1:])]


def documents(data: PreparedData, split: str, domain: int) -> List[str]:
    """Whole documents of a split, decoded; the last one may be cut off."""
    tokenizer = Tokenizer.load(data.tokenizer_path)
    found: List[str] = []
    current: List[int] = []
    for token in stream(data, split, domain):
        if token == tokenizer.end_of_text:
            assert current[0] == tokenizer.domain_tags[data.domains[domain]]
            found.append(tokenizer.decode(current[1:]))
            current = []
        else:
            current.append(token)
    return found


def test_rows_hold_the_documents_of_their_split(tmp_path: Path, corpora: Corpora, make_config: MakeConfig) -> None:
    prepare(make_config(tmp_path / "data", corpora))
    data = PreparedData.open(str(tmp_path / "data"))
    for domain, name in enumerate(data.domains):
        texts = [path.read_bytes().decode() for path in sorted(Path(corpora[name]).iterdir())]
        validates = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:8], "big") < 0.2 * 2**64 for t in texts]
        for split, wanted in (("train", False), ("validation", True)):
            expected = [t for t, v in zip(texts, validates) if v == wanted]
            found = documents(data, split, domain)
            assert found == expected[: len(found)]
            assert len(expected) - len(found) <= 1  # the tail that fills no row
            assert data.manifest.documents[split][domain] == len(expected)


def test_long_documents_are_cut_and_stay_on_one_side(tmp_path: Path, make_config: MakeConfig) -> None:
    folder = tmp_path / "en"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text("".join(f"{number} line {line}\n" for line in range(200)))
    prepare(make_config(tmp_path / "data", {"en": str(folder)}, document_bytes=500))
    data = PreparedData.open(str(tmp_path / "data"))
    sides = [{piece.split()[0] for piece in documents(data, split, 0)} for split in ("train", "validation")]
    assert all(sides) and not sides[0] & sides[1]
    assert max(len(piece) for piece in documents(data, "train", 0)) <= 500


def test_the_only_document_is_split_by_pieces(tmp_path: Path, make_config: MakeConfig) -> None:
    novel = tmp_path / "novel.txt"
    novel.write_text("".join(f"sentence number {line}\n" for line in range(600)))
    prepare(make_config(tmp_path / "data", {"en": str(novel)}, document_bytes=400))
    data = PreparedData.open(str(tmp_path / "data"))
    train, validation = (documents(data, split, 0) for split in ("train", "validation"))
    assert train and validation and not set(train) & set(validation)
    assert all(piece in novel.read_text() for piece in train + validation)


def test_a_repeated_document_stays_on_one_side(tmp_path: Path, make_config: MakeConfig) -> None:
    path = tmp_path / "x.jsonl"
    lines = [json.dumps({"text": f"document {number % 10} " * 9}) for number in range(50)]
    path.write_text("\n".join(lines))
    prepare(make_config(tmp_path / "data", {"en": str(path)}))
    data = PreparedData.open(str(tmp_path / "data"))
    assert not set(documents(data, "train", 0)) & set(documents(data, "validation", 0))


def test_second_run_is_up_to_date(
    tmp_path: Path, corpora: Corpora, make_config: MakeConfig, capsys: pytest.CaptureFixture
) -> None:
    config = make_config(tmp_path / "data", corpora)
    prepare(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    capsys.readouterr()
    prepare(config)
    assert "up to date" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == before


@pytest.mark.parametrize("change", ["sequence_length", "text", "vocabulary", "damage"])
def test_a_change_writes_the_folder_anew(
    tmp_path: Path, corpora: Corpora, make_config: MakeConfig, change: str
) -> None:
    prepare(make_config(tmp_path / "data", corpora))
    before = PreparedData.open(str(tmp_path / "data")).manifest
    options = {"sequence_length": {"sequence_length": 16}, "vocabulary": {"vocab_size": 380}}.get(change, {})
    if change == "text":
        (Path(corpora["en"]) / "000.txt").write_text("something else altogether\n")
    if change == "damage":
        (tmp_path / "data" / "token_counts.npy").write_bytes(b"")
    prepare(make_config(tmp_path / "data", corpora, **options))
    after = PreparedData.open(str(tmp_path / "data"), verify=True).manifest
    assert (after.fingerprint == before.fingerprint) == (change == "damage")
    assert {p.name for p in tmp_path.iterdir()} == {"corpora", "data"}


def test_same_inputs_give_the_same_rows(tmp_path: Path, corpora: Corpora, make_config: MakeConfig) -> None:
    for name in ("a", "b"):
        prepare(make_config(tmp_path / name, corpora))
    opened = [PreparedData.open(str(tmp_path / name)) for name in ("a", "b")]
    assert opened[0].manifest.fingerprint == opened[1].manifest.fingerprint
    assert opened[0].manifest.tokenizer_sha256 == opened[1].manifest.tokenizer_sha256
    for split in ("train", "validation"):
        assert [stream(opened[0], split, d) for d in range(3)] == [stream(opened[1], split, d) for d in range(3)]


def test_failure_leaves_the_old_folder(
    tmp_path: Path,
    corpora: Corpora,
    make_config: MakeConfig,
    folder_bytes: Callable[[Path], List[object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(make_config(tmp_path / "data", corpora))
    before = folder_bytes(tmp_path)

    def fail(*_: object) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(prepare_module, "write_rows", fail)
    with pytest.raises(OutputNotWritten, match="disk full"):
        prepare(make_config(tmp_path / "data", corpora, sequence_length=16))
    assert folder_bytes(tmp_path) == before
    assert {p.name for p in tmp_path.iterdir()} == {"corpora", "data"}


KILLED = """
import os, sys, yaml
from pangu_sigma.cli.main import main
from pangu_sigma.data import prepare
prepare.write_rows = lambda *_: os.kill(os.getpid(), 9)
main(["prepare", sys.argv[1]])
"""


def test_what_a_killed_prepare_left_is_gone_after_the_next(
    tmp_path: Path, corpora: Corpora, make_config: MakeConfig
) -> None:
    config = make_config(tmp_path / "data", corpora)
    save_config(config, tmp_path / "config.yaml")
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "config.yaml")], cwd=tmp_path)
    left = [path.name for path in (tmp_path / "data").iterdir()]
    assert process.returncode == -signal.SIGKILL and sum(name.startswith(".writing-") for name in left) == 1
    prepare(config)
    PreparedData.open(str(tmp_path / "data"), verify=True)
    assert [path.name for path in (tmp_path / "data").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", ["foreign", "file"])
def test_what_prepare_did_not_write_stays(tmp_path: Path, corpora: Corpora, make_config: MakeConfig, kind: str) -> None:
    target = tmp_path / "data"
    if kind == "foreign":
        target.mkdir()
    kept = target / "thesis.txt" if kind == "foreign" else target
    kept.write_text("years of work")
    with pytest.raises(InputError, match=r"data\.path"):
        prepare(make_config(target, corpora))
    assert kept.read_text() == "years of work"


def test_a_given_tokenizer_is_used(tmp_path: Path, corpora: Corpora, make_config: MakeConfig) -> None:
    path = tmp_path / "given.model"
    train_tokenizer(["some text"], ["zh", "en", "code", "more"], 300, str(path))
    prepare(make_config(tmp_path / "data", corpora, tokenizer=str(path)))
    data = PreparedData.open(str(tmp_path / "data"))
    assert Path(data.tokenizer_path).read_bytes() == path.read_bytes()
    assert data.read("train", 1, [0])[0, 0] == Tokenizer.load(str(path)).domain_tags["zh"]


@pytest.mark.parametrize("make_tokenizer", [byte_level, byte_fallback])
def test_a_tokenizer_of_hugging_face_is_given_tags_and_used(
    tmp_path: Path, corpora: Corpora, make_config: MakeConfig, make_tokenizer: Callable[..., Path]
) -> None:
    texts = [path.read_text() for source in corpora.values() for path in Path(source).iterdir()]
    given = make_tokenizer(tmp_path / "any name", texts, 450)
    prepare(make_config(tmp_path / "data", corpora, tokenizer=str(given)))
    data = PreparedData.open(str(tmp_path / "data"), verify=True)
    assert data.tokenizer_path == str(tmp_path / "data" / "tokenizer.json")
    assert not (tmp_path / "data" / "tokenizer.model").exists()
    tokenizer = Tokenizer(data.read_tokenizer())
    assert data.vocab_size == tokenizer.vocab_size and data.end_of_text == tokenizer.end_of_text
    for number, name in enumerate(data.domains):
        assert documents(data, "validation", number)[0] in {p.read_text() for p in Path(corpora[name]).iterdir()}
    # The file that it wrote can be given, as a checkpoint's is, and is kept to the byte; and data of SentencePiece
    # replace those of this kind.
    prepare(make_config(tmp_path / "again", corpora, tokenizer=data.tokenizer_path))
    again = PreparedData.open(str(tmp_path / "again"))
    assert again.manifest.tokenizer_sha256 == data.manifest.tokenizer_sha256
    prepare(make_config(tmp_path / "data", corpora))
    assert PreparedData.open(str(tmp_path / "data")).manifest.tokenizer_name == "tokenizer.model"
    assert not (tmp_path / "data" / "tokenizer.json").exists()


def test_a_given_tokenizer_without_the_tags_is_refused(
    tmp_path: Path, corpora: Corpora, make_config: MakeConfig
) -> None:
    path = tmp_path / "given.model"
    train_tokenizer(["some text"], ["en"], 300, str(path))
    with pytest.raises(InputError, match=r"data\.prepare\.tokenizer.*zh, code"):
        prepare(make_config(tmp_path / "data", corpora, tokenizer=str(path)))


def test_bad_settings_are_named(tmp_path: Path, corpora: Corpora, make_config: MakeConfig) -> None:
    cases = [
        ({"sources": {}}, r"data\.prepare\.sources: found none"),
        ({"sources": {"a/b": corpora["en"]}}, "domain name 'a/b'"),
        ({"sources": {"中 文": corpora["zh"]}}, "domain name '中 文'; expected letters and digits of any script"),
        ({"sources": {"cafe\u0301": corpora["en"]}}, "domain name 'cafe\u0301'; .*NFC"),
        ({"sources": {"\u200ben": corpora["en"]}}, r"domain name '\\u200ben'"),
        ({"sources": {"a.b": corpora["en"]}}, "domain name 'a.b'"),
        ({"sources": {"": corpora["en"]}}, "domain name ''"),
        ({"sources": {"中" * 65: corpora["en"]}}, "at most 64 characters"),
        ({"text_key": "body"}, "data.prepare.text_key is body, but no source is a JSONL or Parquet file"),
        ({"domain_key": "来源"}, "data.prepare.domain_key is 来源, but no source is a JSONL or Parquet file"),
        ({"sources": {"en": str(tmp_path / "none")}}, r"data\.prepare\.sources\.en"),
        ({"sequence_length": 100_000}, "fills no train row of 100001 ids"),
        ({"sequence_length": 1_200}, "fills no validation row of 1201 ids"),
        ({"sources": {"en": corpora["en"] + "/000.txt"}}, "single document"),
        ({"tokenizer": corpora["en"] + "/000.txt"}, r"000\.txt.*SentencePiece"),
    ]
    for change, complaint in cases:
        options = {"sources": corpora, **change}
        with pytest.raises(InputError, match=complaint):
            prepare(make_config(tmp_path / "data", **options))
        assert {p.name for p in tmp_path.iterdir()} == {"corpora"}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["the same"] * 100, "holds 100 documents, all with the same text; expected two different ones"),
        (["one alone"], r"is a single document of less than data\.prepare\.document_bytes \(20000\)"),
        (["same line\n" * 10_000], r"is a single document, whose 5 pieces of .* \(20000\) are all the same"),
    ],
)
def test_what_cannot_lie_on_two_sides_is_told_why(
    tmp_path: Path, make_config: MakeConfig, texts: List[str], message: str
) -> None:
    (tmp_path / "en").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "en" / f"{number}.txt").write_text(text)
    with pytest.raises(InputError, match=f"domain 'en' {message}"):
        prepare(make_config(tmp_path / "data", {"en": str(tmp_path / "en")}))


def test_what_is_passed_over_is_told_and_recorded(
    tmp_path: Path, corpora: Corpora, make_config: MakeConfig, capsys: pytest.CaptureFixture
) -> None:
    english = Path(corpora["en"])
    for name in (".git/config.txt", ".ipynb_checkpoints/001.py", "picture.png", "empty.txt"):
        (english / name).parent.mkdir(exist_ok=True)
        (english / name).write_text("" if name == "empty.txt" else "text")
    (tmp_path / "records.jsonl").write_text(
        "".join(json.dumps({"text": f"record {n} {'word ' * 30}" if n % 9 else " "}) + "\n" for n in range(60))
    )
    os.replace(english / "000.txt", tmp_path / "elsewhere.txt")
    (english / "linked.txt").symlink_to(tmp_path / "elsewhere.txt")
    config = make_config(tmp_path / "data", {**corpora, "more": str(tmp_path / "records.jsonl")})
    told = [
        "  en: 40 files read; passed over 4 files: 2 hidden (.git/config.txt, .ipynb_checkpoints/001.py); "
        "1 of another type, .png (picture.png); 1 empty (empty.txt)",
        f"  more: 1 files read; passed over 7 records: 7 empty ({tmp_path}/records.jsonl:1, "
        f"{tmp_path}/records.jsonl:10, {tmp_path}/records.jsonl:19, ...)",
    ]
    for _ in range(2):  # the second time the data are up to date
        prepare(config)
        assert capsys.readouterr().out.splitlines()[-2:] == told
    english_record, *_, last = PreparedData.open(str(tmp_path / "data")).manifest.sources
    assert english_record.files == 40
    assert english_record.files_passed_over == {"empty": 1, "hidden": 2, "of another type, .png": 1}
    assert (last.files, last.files_passed_over, last.records_passed_over) == (1, {}, {"empty": 7})


def test_a_manifest_of_before_opens_and_is_up_to_date(
    tmp_path: Path, corpora: Corpora, make_config: MakeConfig, capsys: pytest.CaptureFixture
) -> None:
    config = make_config(tmp_path / "data", corpora)
    prepare(config)
    manifest = tmp_path / "data" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["sources"]
    manifest.write_text(json.dumps(content))
    assert PreparedData.open(str(tmp_path / "data"), verify=True).manifest.sources == ()
    capsys.readouterr()
    prepare(config)
    assert capsys.readouterr().out == f"{tmp_path}/data: up to date\n"


@pytest.mark.parametrize(
    "sources", [5, [1], [{}], [{"files": 1, "files_passed_over": [], "records_passed_over": {}}] * 3, [None] * 2]
)
def test_a_manifest_whose_counts_are_none_is_refused(prepared_folder: Path, tmp_path: Path, sources: object) -> None:
    folder = shutil.copytree(prepared_folder, tmp_path / "data")
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, "sources": sources}))
    with pytest.raises(InputError, match="a field is missing or malformed"):
        PreparedData.open(str(folder))


def test_a_full_disk_is_one_line_and_leaves_the_old_folder(
    tmp_path: Path, corpora: Corpora, make_config: MakeConfig, folder_bytes: Callable[[Path], List[object]]
) -> None:
    """No file may be larger than some bytes, in a process of its own, as where a disk is full: each stage of writing
    meets it.
    """
    prepare(make_config(tmp_path / "data", corpora))
    before = folder_bytes(tmp_path)
    config = make_config(tmp_path / "data", corpora, sequence_length=16)
    save_config(config, tmp_path / "config.yaml")
    for size in (100, 100_000, 1_500_000):  # the tokenizer; the rows' header; the rows
        limited = (
            f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); "
            "from pangu_sigma.cli.main import main; "
        )
        done = subprocess.run(
            [sys.executable, "-c", f"{limited}sys.exit(main(['prepare', {str(tmp_path / 'config.yaml')!r}]))"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 1
        last = [line.rpartition("\r")[2] for line in done.stderr.splitlines() if line.rpartition("\r")[2].strip()]
        assert len(last) == 1 and "cannot be written (file too large); expected room" in last[0], done.stderr
    (tmp_path / "config.yaml").unlink()
    assert folder_bytes(tmp_path) == before


def test_tokenizer_training_text_is_limited(
    tmp_path: Path, corpora: Corpora, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: List[str] = []

    def remember(texts: List[str], *rest: object) -> Tokenizer:
        seen.extend(texts)
        return train_tokenizer(texts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare_module, "train_tokenizer", remember)
    prepare(make_config(tmp_path / "data", corpora, tokenizer_training_bytes=3_000))
    by_domain: Dict[str, int] = {}
    for name, folder in corpora.items():
        whole = "\0".join(path.read_bytes().decode() for path in Path(folder).iterdir())
        by_domain[name] = sum(len(text.encode()) for text in seen if text in whole)
    assert all(0.8 * 1_000 < size <= 1_000 for size in by_domain.values()), by_domain


def test_domains_have_names_of_any_script(
    tmp_path: Path, corpora: Corpora, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["百科", "हिन्दी", "Ελληνικά_2-b", "𠮷" * 50]
    sources = dict(zip(names, [*corpora.values(), corpora["en"]]))
    prepare(make_config(tmp_path / "数据", sources))
    data = PreparedData.open(str(tmp_path / "数据"), verify=True)
    assert data.domains == tuple(names)
    tokenizer, said = Tokenizer.load(data.tokenizer_path), capsys.readouterr().out
    for number, name in enumerate(names):
        assert stream(data, "train", number)[0] == tokenizer.domain_tags[name]
        assert (data.path / f"validation-{name}.mindrecord").is_file()
        assert f"  {name}: train " in said


def test_records_are_read_by_the_fields_that_are_named(
    tmp_path: Path, corpora: Corpora, make_config: MakeConfig
) -> None:
    labels = {"en": "english", "zh": "caf\u00e9"}
    records = [
        # One spelling of the name in the file, another in the configuration.
        {"content": path.read_text(), "meta": unicodedata.normalize("NFD", labels[domain]), "text": "not this"}
        for domain in labels
        for path in sorted(Path(corpora[domain]).iterdir())
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, records)))
    table = pyarrow.table({name: [record[name] for record in records] for name in records[0]})
    pyarrow.parquet.write_table(table, tmp_path / "all.parquet")
    found = []
    for source in ("all.jsonl", "all.parquet"):
        sources = dict.fromkeys(labels.values(), str(tmp_path / source))
        prepare(make_config(tmp_path / source[4:], sources, text_key="content", domain_key="meta"))
        found.append(PreparedData.open(str(tmp_path / source[4:])))
    prepare(make_config(tmp_path / "plain", {labels[domain]: corpora[domain] for domain in labels}))
    plain = PreparedData.open(str(tmp_path / "plain"))
    for data in found:
        for number in range(2):
            assert stream(data, "train", number) == stream(plain, "train", number)
    wrong = make_config(tmp_path / "wrong", sources, text_key="content", domain_key="source")
    with pytest.raises(InputError, match="domain_key is source, but none of the 160 records .* names its domain there"):
        prepare(wrong)


@pytest.mark.parametrize(
    ("fraction", "told"), [(0.2, ""), (0.4, ""), (0.01, r"domain 'en': .* asks for 1 %: .* drawn, 1 of 2 here")]
)
def test_a_split_far_from_its_fraction_is_told(
    tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str], fraction: float, told: str
) -> None:
    count = 2 if fraction == 0.01 else 300
    lines = [json.dumps({"text": f"{number} " + "words of text " * 20}) for number in range(count)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    config = make_config(tmp_path / "data", {"en": str(tmp_path / "a.jsonl")}, validation_fraction=fraction)
    for _ in range(2):  # of data that are up to date as well
        prepare(config)
        error = capsys.readouterr().err
        warned = [line for line in error.splitlines() if "% of its rows validate" in line]
        assert (len(warned) == 1 and re.search(told, warned[0])) if fraction == 0.01 else not warned


def test_a_vocabulary_smaller_than_asked_for_is_told(
    tmp_path: Path, corpora: Corpora, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(make_config(tmp_path / "data", corpora, vocab_size=8000))
    found = PreparedData.open(str(tmp_path / "data")).vocab_size
    told = f"the tokenizer has {found} pieces, where data.prepare.vocab_size asks for 8000"
    assert found < 8000 and told in capsys.readouterr().err
    prepare(make_config(tmp_path / "400", corpora, vocab_size=400))
    assert "pieces, where" not in capsys.readouterr().err
