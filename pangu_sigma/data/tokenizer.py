"""SentencePiece with byte fallback: every text round-trips, and special ids come from the model file."""

import os
import re
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Dict, Iterable, List, Sequence, Set, Tuple

import sentencepiece

from locmoe_ops.errors import InputError
from pangu_sigma.data.jsonl import check_text

END_OF_TEXT = "<|endoftext|>"
CHARACTER_COVERAGE = 0.995
MAX_TRAINING_LINE = 1000

# SentencePiece writes a space as U+2581, so this character itself can only travel as its three UTF-8 bytes.
SPACE_SYMBOL = "\u2581"
_DOMAIN_TAG = re.compile(r"<\|domain:(.+)\|>")
_PROBE = f"  a \t\r\n\n\u4e2d\u6587\u3000\uff21 e\u0301 \ufb01 \U0001f600\0 {SPACE_SYMBOL} {END_OF_TEXT} "


def domain_tag(domain: str) -> str:
    return f"<|domain:{domain}|>"


class Tokenizer:
    """Text <-> ids. `decode(encode(text)) == text` for every text that UTF-8 can hold; special ids decode to nothing.

    Args:
        model: bytes of a SentencePiece model.
        source: names it in messages.

    Attributes:
        vocab_size: number of ids.
        end_of_text: id that closes a document.
        domain_tags: domain name -> id that opens its documents, in id order.
        domains: the names, in the same order.
        byte_lengths: bytes of text that each id stands for, 0 for special ids.
    """

    def __init__(self, model: bytes, source: str = "tokenizer") -> None:
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            is_model = bool(model) and self._processor.LoadFromSerializedProto(model) and self._processor.vocab_size()
        except (RuntimeError, OSError, ValueError):
            is_model = False
        if not is_model:
            raise InputError(f"{source}: is no SentencePiece model ({len(model)} bytes); expected a whole .model file")
        ids = range(self._processor.vocab_size())
        self._bytes_of = [_bytes_of(self._processor, i) for i in ids]
        special = {self._processor.id_to_piece(i): i for i in ids if self._processor.is_control(i)}
        if END_OF_TEXT not in special:
            raise InputError(f"{source}: has no control symbol {END_OF_TEXT}; expected one to close documents")
        self.vocab_size = len(ids)
        self.end_of_text = special[END_OF_TEXT]
        tags = {_DOMAIN_TAG.fullmatch(piece): i for piece, i in special.items()}
        self.domain_tags: Dict[str, int] = {match.group(1): i for match, i in tags.items() if match}
        self._space_symbol = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_SYMBOL.encode("utf-8")]
        if not all(self._processor.is_byte(i) for i in self._space_symbol):
            raise InputError(f"{source}: has no byte pieces; expected a model trained with byte fallback")
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise InputError(
                f"{source}: changes text; expected byte fallback, identity normalisation, no dummy prefix, "
                "and whitespace kept"
            )

    @classmethod
    def load(cls, path: str) -> "Tokenizer":
        """Raises InputError naming `path` where it is missing, is no SentencePiece model, or lacks what is needed."""
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise InputError(
                f"tokenizer {path}: cannot be read ({error.strerror}); expected a SentencePiece model"
            ) from None
        return cls(model, f"tokenizer {path}")

    @property
    def domains(self) -> Tuple[str, ...]:
        return tuple(self.domain_tags)

    @property
    def byte_lengths(self) -> List[int]:
        return [len(text) for text in self._bytes_of]

    def encode(self, text: str) -> List[int]:
        """Ids of `text`, without special ids. Raises InputError: half of a surrogate pair is in it, which no bytes
        stand for.
        """
        check_text(text, "text to be encoded")
        ids: List[int] = []
        for number, part in enumerate(text.split(SPACE_SYMBOL)):
            if number:
                ids.extend(self._space_symbol)
            ids.extend(self._processor.encode(part))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are no valid UTF-8 become U+FFFD.

        Raises:
            ValueError: an id outside [0, vocab_size).
        """
        parts = []
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside 0..{self.vocab_size - 1}")
            parts.append(self._bytes_of[i])
        return b"".join(parts).decode("utf-8", errors="replace")


def _bytes_of(processor: sentencepiece.SentencePieceProcessor, i: int) -> bytes:
    if processor.is_control(i) or processor.is_unknown(i):
        return b""
    piece = processor.id_to_piece(i)
    if processor.is_byte(i):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE_SYMBOL, " ").encode("utf-8")


def train_tokenizer(texts: Sequence[str], domains: Sequence[str], vocab_size: int, path: str) -> Tokenizer:
    """Trains a byte-pair model on `texts`, with a tag for each of `domains`, and writes it to `path` whole or not at
    all.

    The vocabulary holds the 256 bytes, the special symbols, the commonest characters and their merges; rarer characters
    travel as bytes. It comes out smaller than `vocab_size` where the text does not yield that many merges.

    Raises:
        InputError: no text to train on, or a vocabulary too small for the bytes and special symbols.
    """
    symbols = [END_OF_TEXT, *map(domain_tag, domains)]
    free = vocab_size - 256 - 1 - len(symbols)
    if free < 2:
        raise InputError(
            f"data.prepare.vocab_size: found {vocab_size}; expected at least {vocab_size - free + 2} "
            "(256 bytes, special symbols and some characters)"
        )
    breaks = {ord(character): "\n" for character in _rare_characters(texts, free // 2)}
    lines = [
        line[start : start + MAX_TRAINING_LINE]
        for text in texts
        for line in text.translate(breaks).split("\n")
        for start in range(0, len(line), MAX_TRAINING_LINE)
    ]
    if not lines:
        raise InputError("data.prepare.sources: no text to train the tokenizer on; expected some")
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        required_chars=SPACE_SYMBOL,  # a space without a piece of its own would come back as U+2581
        control_symbols=symbols,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        max_sentence_length=8 * MAX_TRAINING_LINE,
        num_threads=os.cpu_count() or 1,
        minloglevel=2,
    )
    tokenizer = Tokenizer(model.getvalue(), f"tokenizer {path}")
    unfinished = Path(f"{path}.writing")
    unfinished.write_bytes(model.getvalue())
    os.replace(unfinished, path)
    return tokenizer


def _rare_characters(texts: Sequence[str], most: int) -> Set[str]:
    """Characters left to byte fallback: all but the commonest `most`, or but those that make up CHARACTER_COVERAGE."""
    counts: Counter = Counter()
    for text in texts:
        counts.update(text)
    wanted = CHARACTER_COVERAGE * sum(counts.values())
    rare = {"\0", SPACE_SYMBOL}
    covered = 0
    for rank, (character, count) in enumerate(sorted(counts.items(), key=lambda item: (-item[1], item[0]))):
        if rank >= most or covered >= wanted:
            rare.add(character)
        covered += count
    return rare
