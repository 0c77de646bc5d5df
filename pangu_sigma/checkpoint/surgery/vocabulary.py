"""Which row of a dense model's word table belongs to which word of the new model."""

from pathlib import Path
from typing import List, NamedTuple, Optional

import numpy as np
import sentencepiece

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.surgery.dense import DenseModel
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.manifest import describe_file


class Rows(NamedTuple):
    """Row `ours[i]` of the new table is row `theirs[i]` of the old one; both <int64>[n]. words, source_words: rows of
    each.
    """

    ours: np.ndarray
    theirs: np.ndarray
    words: int
    source_words: int

    @property
    def inherited(self) -> int:
        return len(self.ours)


def match_rows(dense: DenseModel, data: PreparedData, words: int, source_tokenizer: Optional[str]) -> Rows:
    """Rows by id, where both models have one tokenizer or nothing is known of the old one's; by piece, where the old
    one's is given.

    Raises InputError: the tokenizers are known to differ and none is given; the one given is not the model's or no
    SentencePiece model.
    """
    source_words = len(dense.read("embedding.word"))
    own = data.manifest.tokenizer_sha256
    if source_tokenizer is None:
        if dense.tokenizer_sha256 not in (None, own):
            raise InputError(
                f"data.path: {data.path} has another tokenizer than the dense model was trained with; expected the "
                f"same, or --source-tokenizer {dense.tokenizer_file or 'FILE'} to match rows by their pieces"
            )
        same = np.arange(min(words, source_words))
        return Rows(same, same, words, source_words)
    path_sha = _describe(source_tokenizer)
    if dense.tokenizer_sha256 not in (None, path_sha):
        raise InputError(
            f"--source-tokenizer {source_tokenizer}: not the file that the dense model was trained with (sha256 "
            f"{str(dense.tokenizer_sha256)[:12]}...)"
        )
    theirs = {piece: number for number, piece in enumerate(_pieces(source_tokenizer)[:source_words])}
    pairs = [(number, theirs[piece]) for number, piece in enumerate(_pieces(data.tokenizer_path)) if piece in theirs]
    ours = np.array([number for number, _ in pairs], np.int64)
    return Rows(ours, np.array([number for _, number in pairs], np.int64), words, source_words)


def _describe(path: str) -> str:
    try:
        return describe_file(Path(path)).sha256
    except OSError as error:
        raise InputError(
            f"--source-tokenizer {path}: cannot be read ({error.strerror}); expected a SentencePiece model"
        ) from None


def _pieces(path: str) -> List[str]:
    """The tokenizer's pieces in the order of ids. Any SentencePiece model will do: nothing is encoded with it."""
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.Load(path)
    except (OSError, RuntimeError, ValueError):
        raise InputError(
            f"--source-tokenizer {path}: is no SentencePiece model; expected a whole .model file"
        ) from None
    return [processor.id_to_piece(number) for number in range(processor.vocab_size())]
