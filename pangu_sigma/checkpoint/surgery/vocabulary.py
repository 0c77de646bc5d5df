"""Which row of a dense model's word table belongs to which word of the new model."""

from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.surgery.dense import DenseModel
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.manifest import describe_file
from pangu_sigma.data.pieces import piece_keys
from pangu_sigma.data.tokenizer import read_model


class Rows(NamedTuple):
    """Row `ours[i]` of the new table is row `theirs[i]` of the old one.

    Attributes:
        ours, theirs: <int64>[n].
        vocab_size, source_vocab_size: rows of the new table, and of the old one.
    """

    ours: np.ndarray
    theirs: np.ndarray
    vocab_size: int
    source_vocab_size: int

    @property
    def inherited(self) -> int:
        return len(self.ours)


def match_rows(dense: DenseModel, data: PreparedData, vocab_size: int, source_tokenizer: Optional[str]) -> Rows:
    """Rows by id, where both models have one tokenizer or nothing is known of the old one's; by piece, where the old
    one's is given.

    Args:
        dense: the old model.
        data: whose tokenizer the new model has.
        vocab_size: rows of the new table.
        source_tokenizer: file of the old model's tokenizer; None: none is given.

    Raises InputError: the tokenizers are known to differ and none is given; the one given is not the model's or no
    tokenizer's file.
    """
    source_size = len(dense.read("embedding.word"))
    own = data.manifest.tokenizer_sha256
    if source_tokenizer is None:
        if dense.tokenizer_sha256 not in (None, own):
            raise InputError(
                f"data.path: {data.path} has another tokenizer than the dense model was trained with; expected the "
                f"same, or --source-tokenizer {dense.tokenizer_file or 'FILE'} to match rows by their pieces"
            )
        same = np.arange(min(vocab_size, source_size))
        return Rows(same, same, vocab_size, source_size)
    try:
        path_sha = describe_file(Path(source_tokenizer)).sha256
    except OSError as error:
        raise InputError(
            f"--source-tokenizer {source_tokenizer}: cannot be read ({error.strerror}); expected a SentencePiece "
            "model, or Hugging Face's tokenizer.json"
        ) from None
    if dense.tokenizer_sha256 not in (None, path_sha):
        raise InputError(
            f"--source-tokenizer {source_tokenizer}: not the file that the dense model was trained with (sha256 "
            f"{str(dense.tokenizer_sha256)[:12]}...)"
        )
    old = piece_keys(read_model(source_tokenizer), f"--source-tokenizer {source_tokenizer}")
    new = piece_keys(read_model(data.tokenizer_path), data.tokenizer_path)
    theirs = {piece: number for number, piece in enumerate(old[:source_size])}
    pairs = [(number, theirs[piece]) for number, piece in enumerate(new) if piece in theirs]
    ours = np.array([number for number, _ in pairs], np.int64)
    return Rows(ours, np.array([number for _, number in pairs], np.int64), vocab_size, source_size)
