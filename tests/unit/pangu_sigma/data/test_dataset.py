import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.tokenizer import Tokenizer


@pytest.fixture
def copy(prepared_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared_folder, tmp_path / "data"))


def test_open_tells_what_the_folder_holds(data: PreparedData) -> None:
    tokenizer = Tokenizer.load(data.tokenizer_path)
    assert data.domains == ("en", "zh", "code")
    assert (data.vocab_size, data.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)
    assert data.sequence_length == 32


def test_the_tokenizer_is_that_of_when_the_folder_was_opened(copy: Path) -> None:
    data = PreparedData.open(str(copy))
    assert data.read_tokenizer() == (copy / "tokenizer.model").read_bytes()
    (copy / "tokenizer.model").write_bytes(b"another, of a prepare that ran meanwhile")
    with pytest.raises(InputError, match="tokenizer.model: not the file that manifest.json described"):
        data.read_tokenizer()
    (copy / "tokenizer.model").unlink()
    with pytest.raises(InputError, match="tokenizer.model: cannot be read"):
        data.read_tokenizer()


def test_read_in_any_order(data: PreparedData) -> None:
    count = data.rows("train", 1)
    whole = data.read("train", 1, range(count))
    assert whole.shape == (count, 33) and whole.dtype == np.int32
    order = [count - 1, 0, 2, 2]
    np.testing.assert_array_equal(data.read("train", 1, order), whole[order])


def test_token_counts_against_the_rows(data: PreparedData) -> None:
    for domain in range(3):
        expected = np.zeros(data.vocab_size, np.int64)
        for row in data.read("train", domain, range(data.rows("train", domain))):
            for token in row[1:]:
                expected[token] += 1
        np.testing.assert_array_equal(data.domain_token_counts[domain], expected)
    np.testing.assert_array_equal(data.token_counts, data.domain_token_counts.sum(0))


@pytest.mark.parametrize("index", [-1, 10**6])
def test_rows_that_do_not_exist(data: PreparedData, index: int) -> None:
    with pytest.raises(IndexError, match="train 'en'"):
        data.read("train", 0, [index])


@pytest.mark.parametrize(
    "name", ["tokenizer.model", "token_counts.npy", "train-zh.mindrecord", "validation-en.mindrecord.db"]
)
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "empty"])
def test_a_damaged_file_is_named(copy: Path, name: str, damage: str) -> None:
    path = copy / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes({"truncate": content[:-1], "flip": content, "empty": b""}[damage])
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        PreparedData.open(str(copy))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "cannot be read"),
        ('{"format": "pangu', "cannot be read"),
        ("[]", "not of this program"),
        ('{"format": "other"}', "not of this program"),
        ('{"format": "pangu-sigma data", "version": 99}', "version 99; expected 1"),
        ('{"format": "pangu-sigma data", "version": 1}', "missing or malformed"),
    ],
)
def test_a_foreign_manifest_is_named(copy: Path, content: str, complaint: str) -> None:
    (copy / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=rf"manifest\.json: .*{complaint}"):
        PreparedData.open(str(copy))


@pytest.mark.parametrize(
    "change", [{"rows": {}}, {"domains": ["en"]}, {"files": {}}, {"vocab_size": "many"}, {"rows": 3}]
)
def test_a_manifest_with_wrong_fields_is_named(copy: Path, change: dict) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(InputError, match=r"manifest\.json: a field is missing or malformed"):
        PreparedData.open(str(copy))


def test_counts_of_another_vocabulary_are_named(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "vocab_size": 7}))
    with pytest.raises(InputError, match=r"token_counts\.npy"):
        PreparedData.open(str(copy))


def test_ids_outside_the_vocabulary_are_named(prepared_folder: Path) -> None:
    whole = PreparedData.open(str(prepared_folder))
    fields = {**whole.manifest.__dict__, "vocab_size": 3}
    data = PreparedData(whole.path, type(whole.manifest)(**fields), whole.domain_token_counts)
    with pytest.raises(InputError, match=r"train-en\.mindrecord: found ids .* expected 0 to 2"):
        data.read("train", 0, [0])


@pytest.mark.parametrize(("name", "complaint"), [("missing", "is no folder"), ("", "no manifest.json")])
def test_no_data_at_all(tmp_path: Path, name: str, complaint: str) -> None:
    with pytest.raises(InputError, match=rf"data\.path: .*{complaint}"):
        PreparedData.open(str(tmp_path / name))
