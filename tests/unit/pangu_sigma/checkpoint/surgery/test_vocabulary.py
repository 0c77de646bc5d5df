"""Word rows of two vocabularies, matched by hand-made pieces."""

from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.surgery.vocabulary import match_rows
from pangu_sigma.data.manifest import describe_file


def train(path, text, size):
    """A tokenizer as another program might have made it."""
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([text] * 20), model_writer=file, model_type="bpe", vocab_size=size, minloglevel=2
        )
    return path


@pytest.fixture
def old(tmp_path):
    return train(tmp_path / "old.model", "the cat sat on the mat and the rat sat on the cat", 26)


@pytest.fixture
def new(tmp_path):
    return train(tmp_path / "new.model", "a man on a mat that the cat saw", 30)


def data(path):
    return SimpleNamespace(
        path="data", tokenizer_path=str(path), manifest=SimpleNamespace(tokenizer_sha256=describe_file(path).sha256)
    )


def model(rows, tokenizer=None):
    sha = None if tokenizer is None else describe_file(tokenizer).sha256
    return SimpleNamespace(tokenizer_sha256=sha, tokenizer_file=None, read=lambda name: np.zeros((rows, 2)))


def pieces(path):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [processor.id_to_piece(i) for i in range(processor.vocab_size())]


def test_one_tokenizer_one_numbering(old):
    for rows, words in ((26, 26), (32, 26), (26, 32)):
        found = match_rows(model(rows, old), data(old), words, None)
        np.testing.assert_array_equal(found.ours, np.arange(26))
        np.testing.assert_array_equal(found.theirs, found.ours)
        assert (found.vocab_size, found.source_vocab_size, found.inherited) == (words, rows, 26)


def test_rows_follow_their_pieces(old, new):
    found = match_rows(model(26, old), data(new), 30, str(old))
    old_pieces, new_pieces = pieces(old), pieces(new)
    assert 5 < found.inherited < 26 and not np.array_equal(found.ours, found.theirs)
    assert [new_pieces[i] for i in found.ours] == [old_pieces[i] for i in found.theirs]
    left = set(range(30)) - set(found.ours.tolist())
    assert all(new_pieces[i] not in old_pieces for i in left)


def test_different_tokenizers_are_not_taken_for_one(old, new):
    with pytest.raises(InputError, match="another tokenizer .* or --source-tokenizer FILE"):
        match_rows(model(26, old), data(new), 30, None)
    with pytest.raises(InputError, match="not the file that the dense model was trained with"):
        match_rows(model(26, old), data(new), 30, str(new))
    with pytest.raises(InputError, match="absent.model: cannot be read"):
        match_rows(model(26, old), data(new), 30, "absent.model")


def test_a_file_that_is_no_tokenizer(tmp_path, new):
    (tmp_path / "x.model").write_bytes(b"x")
    with pytest.raises(InputError, match="x.model: is no SentencePiece model"):
        match_rows(model(26), data(new), 30, str(tmp_path / "x.model"))
