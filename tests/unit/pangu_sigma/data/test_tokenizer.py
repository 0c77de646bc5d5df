from io import BytesIO
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.texts import TEXTS, TRICKY
from locmoe_ops.errors import InputError
from pangu_sigma.data.tokenizer import END_OF_TEXT, Tokenizer, domain_tag, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = str(tmp_path_factory.mktemp("tokenizer") / "t.model")
    train_tokenizer(TEXTS * 3, ["en", "zh"], 330, path)
    return Tokenizer.load(path)


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["\ud83d", "a\ude00\ud83d", "caf\udce9"])
def test_half_of_a_surrogate_pair_is_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(InputError, match="text to be encoded holds half of a surrogate pair"):
        tokenizer.encode(text)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(list(" \u2581\n\0\t<|>天the")), max_size=60))
def test_any_text_round_trips_without_special_ids(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.end_of_text, *tokenizer.domain_tags.values()} & set(ids)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@pytest.mark.parametrize("text", TRICKY + TEXTS)
def test_byte_lengths_add_up_to_those_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    lengths = tokenizer.byte_lengths
    assert sum(lengths[i] for i in tokenizer.encode(text)) == len(text.encode("utf-8"))
    assert lengths[tokenizer.end_of_text] == 0 and not any(lengths[i] for i in tokenizer.domain_tags.values())


def test_special_ids_are_those_of_the_model_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.model"
    train_tokenizer(TEXTS, ["en", "zh"], 300, str(path))
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    found = Tokenizer.load(str(path))
    assert found.end_of_text == model.piece_to_id(END_OF_TEXT)
    assert found.domain_tags == {d: model.piece_to_id(domain_tag(d)) for d in ("en", "zh")}
    assert found.domains == ("en", "zh")
    assert found.vocab_size == model.vocab_size()


def test_special_ids_decode_to_nothing(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.domain_tags["en"], *tokenizer.encode("a b"), tokenizer.end_of_text]
    assert tokenizer.decode(ids) == "a b"


def test_half_a_character_decodes_to_a_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0001f600")
    assert tokenizer.decode(ids[:1]) == "\ufffd"


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_decode_of_an_unknown_id_is_an_error(tokenizer: Tokenizer, wrong: int) -> None:
    with pytest.raises(ValueError, match=str(wrong)):
        tokenizer.decode([wrong])


def test_learned_pieces_shorten_text(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0].encode()) / 1.5


def test_training_is_reproducible(tmp_path: Path) -> None:
    models = []
    for name in "ab":
        train_tokenizer(TEXTS, ["en"], 320, str(tmp_path / name))
        models.append((tmp_path / name).read_bytes())
    assert models[0] == models[1]


def test_more_characters_than_pieces_leaves_the_rare_ones_to_bytes(tmp_path: Path) -> None:
    text = "".join(chr(0x4E00 + i) for i in range(2000)) + "一二" * 500
    tokenizer = train_tokenizer([text], ["zh"], 300, str(tmp_path / "t.model"))
    assert tokenizer.vocab_size <= 300
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_vocabulary_too_small_for_the_bytes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.prepare\.vocab_size: found 259; expected at least 261"):
        train_tokenizer(TEXTS, ["en"], 259, str(tmp_path / "t.model"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\x05garbage\xff" * 9])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.model").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.model.*SentencePiece"):
        Tokenizer.load(str(tmp_path / "t.model"))


def test_a_truncated_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.model"
    train_tokenizer(TEXTS, ["en"], 320, str(path))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"t\.model"):
        Tokenizer.load(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.model.*cannot be read"):
        Tokenizer.load(str(tmp_path / "none.model"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"byte_fallback": True}, "changes text"),
        ({"byte_fallback": False, "normalization_rule_name": "identity"}, "no byte pieces"),
        ({"byte_fallback": True, "control_symbols": []}, "endoftext"),
    ],
)
def test_a_model_that_loses_text_is_refused(options: dict, complaint: str) -> None:
    model = BytesIO()
    chosen = {
        "control_symbols": [END_OF_TEXT],
        "vocab_size": 320,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:1] * 9), model_writer=model, model_type="bpe", **chosen
    )
    with pytest.raises(InputError, match=complaint):
        Tokenizer(model.getvalue(), "given")
