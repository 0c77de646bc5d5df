"""Text to ids and back: every text round-trips, and special ids come from the tokenizer's file."""

import os
import re
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Dict, Iterable, List, Sequence, Set, Tuple

import sentencepiece

from locmoe_ops.errors import InputError
from pangu_sigma.data.jsonl import check_text
from pangu_sigma.data.pieces import SPACE_SYMBOL, add_special_tokens, is_hugging_face, read_pieces

END_OF_TEXT = "<|endoftext|>"
CHARACTER_COVERAGE = 0.995
MAX_TRAINING_LINE = 1000

_DOMAIN_TAG = re.compile(r"<\|domain:(.+)\|>")
_PROBES = (
    f"  a \t\r\n\n\u4e2d\u6587\u3000\uff21 e\u0301 \ufb01 \U0001f600\0 {SPACE_SYMBOL} {END_OF_TEXT} ",
    "a",  # to which a space might be put
)


def domain_tag(domain: str) -> str:
    return f"<|domain:{domain}|>"


class Tokenizer:
    """Text <-> ids. `decode(encode(text)) == text` for every text that UTF-8 can hold; special ids decode to nothing.

    Args:
        model: bytes of a SentencePiece model, or of Hugging Face's `tokenizer.json`.
        source: names it in messages.

    Attributes:
        model: as given.
        file_name: the usual name of a file of its kind.
        vocab_size: number of ids.
        end_of_text: id that closes a document.
        domain_tags: domain name -> id that opens its documents, in id order.
        domains: the names, in the same order.
        byte_lengths: bytes of text that each id stands for, 0 for special ids.
    """

    def __init__(self, model: bytes, source: str = "tokenizer") -> None:
        self.model = model
        self._pieces = pieces = read_pieces(model, source)
        self.file_name = pieces.file_name
        if END_OF_TEXT not in pieces.special:
            raise InputError(f"{source}: has no control symbol {END_OF_TEXT}; expected one to close documents")
        self.vocab_size = len(pieces.texts)
        self.end_of_text = pieces.special[END_OF_TEXT]
        tags = {_DOMAIN_TAG.fullmatch(piece): i for piece, i in pieces.special.items()}
        self.domain_tags: Dict[str, int] = {match.group(1): i for match, i in tags.items() if match}
        self._space_symbol = pieces.byte_ids(SPACE_SYMBOL) if pieces.marks_spaces else []
        if self._space_symbol is None:
            raise InputError(f"{source}: has no byte pieces; expected a model trained with byte fallback")
        if any(self.decode(self.encode(probe)) != probe for probe in _PROBES):
            raise InputError(
                f"{source}: changes text; expected byte fallback, identity normalisation, no dummy prefix, "
                "and whitespace kept"
            )

    @classmethod
    def load(cls, path: str) -> "Tokenizer":
        """Raises InputError naming `path` where it is missing, is no tokenizer's file, or lacks what is needed."""
        return cls(read_model(path), f"tokenizer {path}")

    @property
    def domains(self) -> Tuple[str, ...]:
        return tuple(self.domain_tags)

    @property
    def byte_lengths(self) -> List[int]:
        return [len(text) for text in self._pieces.texts]

    def encode(self, text: str) -> List[int]:
        """Ids of `text`, without special ids. Raises InputError: half of a surrogate pair is in it, which no bytes
        stand for.
        """
        check_text(text, "text to be encoded")
        if not self._space_symbol:
            return self._pieces.encode(text)
        ids: List[int] = []
        for number, part in enumerate(text.split(SPACE_SYMBOL)):
            if number:
                ids.extend(self._space_symbol)
            ids.extend(self._pieces.encode(part))
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
            parts.append(self._pieces.texts[i])
        return b"".join(parts).decode("utf-8", errors="replace")


def read_model(path: str) -> bytes:
    """The content of a tokenizer's file. Raises InputError naming `path` where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"tokenizer {path}: cannot be read ({error.strerror}); expected a SentencePiece model, or Hugging Face's "
            "tokenizer.json"
        ) from None


def given_tokenizer(path: str, domains: Sequence[str]) -> Tokenizer:
    """The tokenizer in a file that a user brings along, with a tag for each of `domains`.

    A SentencePiece model must hold the tags; to a `tokenizer.json` those that are missing, and `<|endoftext|>`, are
    added (`pangu_sigma.data.pieces.add_special_tokens`).

    Raises InputError: see `Tokenizer.load`; a model without the tags.
    """
    model, source = read_model(path), f"tokenizer {path}"
    if is_hugging_face(model):
        model = add_special_tokens(model, source, [END_OF_TEXT, *map(domain_tag, domains)])
    tokenizer = Tokenizer(model, source)
    missing = [domain for domain in domains if domain not in tokenizer.domain_tags]
    if missing:
        raise InputError(
            f"data.prepare.tokenizer: '{path}' has no tag for {', '.join(missing)}; expected domains among: "
            f"{', '.join(tokenizer.domains) or 'none'}"
        )
    return tokenizer


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
