"""Hugging Face's tokenizer.json, beside SentencePiece: the library that writes such files says what is expected."""

import json
import sys
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.hugging_face import byte_fallback, byte_level
from helpers.texts import TEXTS, TRICKY
from locmoe_ops.errors import InputError
from pangu_sigma.data.pieces import add_special_tokens, file_name_of, piece_keys
from pangu_sigma.data.tokenizer import END_OF_TEXT, Tokenizer, domain_tag, given_tokenizer, train_tokenizer

KINDS = {"byte_level": byte_level, "byte_fallback": byte_fallback}
DOMAINS = ["en", "中文", "हिन्दी"]


@pytest.fixture(scope="module", params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS[request.param](tmp_path_factory.mktemp("hf") / "tokenizer.json", TEXTS * 3)


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return given_tokenizer(str(path), DOMAINS)


@pytest.mark.parametrize("text", TRICKY + TEXTS)
def test_tricky_text_round_trips_and_byte_lengths_add_up(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert sum(tokenizer.byte_lengths[i] for i in ids) == len(text.encode("utf-8"))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(list(" \u2581\n\0\t<|>天the")), max_size=60))
def test_any_text_round_trips_without_special_ids(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.end_of_text, *tokenizer.domain_tags.values()} & set(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_the_librarys(path: Path, tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == tokenizers.Tokenizer.from_file(str(path)).encode(text).ids


def test_special_tokens_get_ids_behind_the_others_and_stay_when_read_again(path: Path, tokenizer: Tokenizer) -> None:
    library = tokenizers.Tokenizer.from_str(tokenizer.model.decode())
    before = tokenizers.Tokenizer.from_file(str(path)).get_vocab_size()
    assert tokenizer.end_of_text == library.token_to_id(END_OF_TEXT) == before
    assert tokenizer.domain_tags == {name: library.token_to_id(domain_tag(name)) for name in DOMAINS}
    assert tokenizer.vocab_size == before + 1 + len(DOMAINS)
    assert tokenizer.decode([tokenizer.end_of_text, *tokenizer.domain_tags.values()]) == ""
    assert add_special_tokens(tokenizer.model, "t", [END_OF_TEXT, *map(domain_tag, DOMAINS)]) is tokenizer.model
    assert tokenizer.file_name == file_name_of(tokenizer.model) == "tokenizer.json"


def test_what_a_file_would_add_to_a_text_is_not_added(tmp_path: Path) -> None:
    padded = {"length": 7, "strategy": {"Fixed": 7}, "direction": "Right", "pad_to_multiple_of": None}
    path = byte_level(
        tmp_path / "t.json",
        TEXTS,
        truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        padding={**padded, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
    )
    found = given_tokenizer(str(path), ["en"])
    assert found.decode(found.encode(TEXTS[0])) == TEXTS[0]


def test_a_token_of_the_file_that_is_no_special_one_stands_for_its_text(tmp_path: Path) -> None:
    path = byte_level(tmp_path / "t.json", TEXTS)
    library = tokenizers.Tokenizer.from_file(str(path))
    library.add_tokens(["<思>"])
    library.save(str(path))
    found = given_tokenizer(str(path), ["en"])
    ids = found.encode("a<思>b")
    assert library.token_to_id("<思>") in ids and found.decode(ids) == "a<思>b"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "decoder is of type WordPiece"),
        ({"decoder": None}, "decoder is of type null"),
        ({"normalizer": {"type": "Lowercase"}}, "changes text"),
        ({"normalizer": {"type": "NFKC"}}, "changes text"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
            "changes text",
        ),
        ({"model": None}, "holds no `model`"),
        ({"model": {"type": "None such"}}, "cannot be read"),
    ],
)
def test_a_file_that_cannot_spell_every_text_is_refused(tmp_path: Path, changes: dict, told: str) -> None:
    path = byte_level(tmp_path / "t.json", TEXTS, **changes)
    with pytest.raises(InputError, match=rf"t\.json: .*{told}"):
        given_tokenizer(str(path), ["en"])


@pytest.mark.parametrize("content", [b"{", b'{"version": "1.0"', b"{}", b"[]", b"", b'{"model": {}, "x": "\xff"}'])
def test_a_file_that_is_no_tokenizer_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.json") as raised:
        given_tokenizer(str(tmp_path / "t.json"), ["en"])
    assert "\n" not in str(raised.value)


def test_without_the_library_the_extra_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        InputError, match=r"tokenizers, which reads it, is not installed; .*pip install tokenizers does"
    ):
        given_tokenizer(str(path), ["en"])


def test_pieces_of_both_kinds_are_matched_by_their_text(tmp_path: Path) -> None:
    trained = train_tokenizer(TEXTS * 3, ["en"], 330, str(tmp_path / "t.model"))
    hugging_face = given_tokenizer(str(byte_level(tmp_path / "t.json", TEXTS * 3)), ["en"])
    ours, theirs = piece_keys(trained.model, "a"), piece_keys(hugging_face.model, "b")
    model = sentencepiece.SentencePieceProcessor(model_proto=trained.model)
    library = tokenizers.Tokenizer.from_str(hugging_face.model.decode())
    shared = set(ours) & set(theirs)
    assert {b" the", b"a", END_OF_TEXT, domain_tag("en")} <= shared
    assert model.id_to_piece(ours.index(b" the")) == "\u2581the"
    assert library.id_to_token(theirs.index(b" the")) == "\u0120the"
    # A byte of byte fallback is no character: SentencePiece has both.
    assert ours.index("<0x61>") != ours.index(b"a")
    assert json.loads(hugging_face.model)["normalizer"] is None
