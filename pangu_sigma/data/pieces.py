"""The two kinds of files that a tokenizer comes in: SentencePiece models, and Hugging Face's `tokenizer.json`.

Either says which bytes of text each id stands for, and which ids are special and stand for none. What is asked of both,
so that every text comes back as it was, is checked by `pangu_sigma.data.tokenizer.Tokenizer`.

`tokenizer.json` is read by the `tokenizers` library (extra `tokenizers`). Two kinds of vocabulary can spell every text:
byte-level ones, as of GPT-2, Qwen or Llama 3, and those with byte fallback, as of Llama 2.
"""

from abc import ABC, abstractmethod
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

import sentencepiece

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import decode, parse_json

SENTENCEPIECE_FILE, HUGGING_FACE_FILE = "tokenizer.model", "tokenizer.json"
# SentencePiece writes a space as U+2581, so this character itself can only travel as its three UTF-8 bytes.
SPACE_SYMBOL = "\u2581"


class Pieces(ABC):
    """A tokenizer's vocabulary, and how it cuts text.

    Attributes:
        file_name: the usual name of files of this kind.
        texts: bytes of text by id; none of special ids.
        special: special symbols and their ids, in the order of ids.
        names: what each id is called in the file.
        marks_spaces: whether a space is written as U+2581.
    """

    file_name: str
    texts: List[bytes]
    special: Dict[str, int]
    names: List[str]
    marks_spaces: bool

    @abstractmethod
    def encode(self, text: str) -> List[int]:
        """Ids of `text`, in which special symbols are plain text."""

    def byte_ids(self, text: str) -> Optional[List[int]]:
        """Ids of the pieces of single bytes that spell `text` under byte fallback; None where one is missing."""
        ids = {name: number for number, name in enumerate(self.names)}
        found = [ids.get(f"<0x{byte:02X}>") for byte in text.encode("utf-8")]
        return None if None in found else [number for number in found if number is not None]


def is_hugging_face(model: bytes) -> bool:
    """Whether a tokenizer's file is JSON; a SentencePiece model is a protocol buffer, which does not begin so."""
    return model.lstrip()[:1] == b"{"


def file_name_of(model: bytes) -> str:
    """The usual name of a tokenizer's file, by its content."""
    return HUGGING_FACE_FILE if is_hugging_face(model) else SENTENCEPIECE_FILE


def read_pieces(model: bytes, source: str) -> Pieces:
    """The vocabulary in a tokenizer's file.

    Args:
        model: content of the file. source: names it in messages.

    Raises InputError: it is neither kind of file, or `tokenizers` is needed and not installed.
    """
    return HuggingFacePieces(model, source) if is_hugging_face(model) else SentencePiecePieces(model, source)


class SentencePiecePieces(Pieces):
    """A SentencePiece model.

    Args:
        model, source: see `read_pieces`.
    """

    file_name, marks_spaces = SENTENCEPIECE_FILE, True

    def __init__(self, model: bytes, source: str) -> None:
        self._processor = processor = sentencepiece.SentencePieceProcessor()
        try:
            is_model = bool(model) and processor.LoadFromSerializedProto(model) and processor.vocab_size()
        except (RuntimeError, OSError, ValueError):
            is_model = False
        if not is_model:
            raise InputError(
                f"{source}: is no SentencePiece model ({len(model)} bytes); expected a whole .model file, or Hugging "
                "Face's tokenizer.json"
            )
        self.names = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
        self.special = {name: i for i, name in enumerate(self.names) if processor.is_control(i)}
        self.texts = [self._text(i) for i in range(len(self.names))]

    def _text(self, i: int) -> bytes:
        if self._processor.is_control(i) or self._processor.is_unknown(i):
            return b""
        if self._processor.is_byte(i):
            return bytes([int(self.names[i][3:5], 16)])
        return self.names[i].replace(SPACE_SYMBOL, " ").encode("utf-8")

    def encode(self, text: str) -> List[int]:
        return list(self._processor.encode(text))

    def byte_ids(self, text: str) -> Optional[List[int]]:
        found = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in text.encode("utf-8")]
        return found if all(self._processor.is_byte(i) for i in found) else None


class HuggingFacePieces(Pieces):
    """A `tokenizer.json`. Its normalisation, cutting and merging are followed; what it would add to a text (a token for
    the beginning, padding) is not.

    Args:
        model, source: see `read_pieces`.
    """

    file_name = HUGGING_FACE_FILE

    def __init__(self, model: bytes, source: str) -> None:
        content = _content(model, source)
        self._tokenizer = _load(model, source)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # those in a text are text
        decoders = {step.get("type") for step in _steps(content.get("decoder"), "decoders")}
        if not decoders & {"ByteLevel", "ByteFallback"}:
            raise InputError(
                f"{source}: its decoder is of type {', '.join(sorted(map(str, decoders))) or 'null'}; expected "
                "ByteLevel or ByteFallback, with which every text can be spelled"
            )
        self.marks_spaces = "ByteLevel" not in decoders
        added = self._tokenizer.get_added_tokens_decoder()
        size = 1 + max([*added, *self._tokenizer.get_vocab(with_added_tokens=False).values()], default=-1)
        self.names = [self._tokenizer.id_to_token(i) or "" for i in range(size)]
        self.special = {token.content: i for i, token in sorted(added.items()) if token.special}
        special, plain = set(self.special.values()), {i for i, token in added.items() if not token.special}
        self.texts = [b"" if i in special else self._text(name, i in plain) for i, name in enumerate(self.names)]

    def _text(self, name: str, is_added: bool) -> bytes:
        if not is_added and not self.marks_spaces and all(character in _BYTE_OF for character in name):
            return bytes(_BYTE_OF[character] for character in name)
        if is_added or not self.marks_spaces:
            return name.encode("utf-8")
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes([int(name[3:5], 16)])
        return name.replace(SPACE_SYMBOL, " ").encode("utf-8")

    def encode(self, text: str) -> List[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def add_special_tokens(model: bytes, source: str, names: Sequence[str]) -> bytes:
    """A `tokenizer.json` with the special tokens `names`; those that it has not get new ids behind all others. Where
    nothing is to be changed, it is the file as it was.

    A normaliser that only composes characters (NFC, as Qwen's) is left out: text in NFC, as most is, has the same ids
    without it, and other text comes back as it was.

    Args:
        model: content of the file. source: names it in messages.
        names: of the tokens that are wanted.

    Raises InputError: see `read_pieces`.
    """
    content, tokenizer = _content(model, source), _load(model, source)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    missing = [name for name in names if name not in special]
    normalisers = list(_steps(content.get("normalizer"), "normalizers"))
    composes = bool(normalisers) and all(step.get("type") == "NFC" for step in normalisers)
    if not missing and not composes:
        return model
    if composes:
        tokenizer.normalizer = None
    tokenizer.add_special_tokens(missing)
    return str(tokenizer.to_str(pretty=True)).encode("utf-8")


def _content(model: bytes, source: str) -> Dict[str, Any]:
    expected = "the tokenizer.json of Hugging Face's tokenizers"
    content = parse_json(decode(model, source, expected), source, expected)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{source}: holds no `model`; expected {expected}")
    return content


def _load(model: bytes, source: str) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise InputError(
            f"{source}: is a tokenizer.json, but tokenizers, which reads it, is not installed; expected it, as "
            "pip install tokenizers does"
        ) from None
    try:
        return tokenizers.Tokenizer.from_str(model.decode("utf-8"))
    except Exception as error:  # the library raises no other class
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{source}: cannot be read ({reason}); expected a tokenizer.json of Hugging Face") from None


def _steps(section: Any, inner: str) -> Iterator[Mapping[str, Any]]:
    """The parts of a section of tokenizer.json, which may be a sequence of others."""
    if isinstance(section, dict):
        if section.get("type") == "Sequence":
            for part in section.get(inner, ()):
                yield from _steps(part, inner)
        else:
            yield section


# The character of each byte in byte-level vocabularies, as GPT-2's public code lays them out: printable ones of Latin-1
# stand for themselves, the others are numbered from 256.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_NUMBERED = sorted({*range(256)} - {*_PRINTABLE})
_BYTE_OF = {**{chr(byte): byte for byte in _PRINTABLE}, **{chr(256 + n): byte for n, byte in enumerate(_NUMBERED)}}


def piece_keys(model: bytes, source: str) -> List[object]:
    """By id, what says that a piece of one tokenizer is that of another: its name where it is special or a byte of
    byte fallback, and otherwise its text.

    Args:
        model, source: see `read_pieces`. Any vocabulary will do: nothing is encoded with it.
    """
    pieces = read_pieces(model, source)
    special = set(pieces.special.values())
    return [
        name if i in special or not text or (pieces.marks_spaces and name.startswith("<0x")) else text
        for i, (name, text) in enumerate(zip(pieces.names, pieces.texts))
    ]
