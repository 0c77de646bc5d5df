"""Small tokenizers as Hugging Face's library saves them, made by that library."""

import json
from pathlib import Path
from typing import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers


def byte_level(path: Path, texts: Sequence[str], size: int = 330, **changes: object) -> Path:
    """A byte-level vocabulary, as of GPT-2 or Qwen; `changes`: sections that replace those of the file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    return _save(tokenizer, path, changes)


def byte_fallback(path: Path, texts: Sequence[str], size: int = 420, **changes: object) -> Path:
    """Characters and their merges, and 256 bytes for what else there is, as of Llama 2."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    unknown = [token for token in json.loads(tokenizer.to_str())["added_tokens"] if token["content"] == "<unk>"]
    return _save(tokenizer, path, {"added_tokens": unknown, **changes})


def _save(tokenizer: Tokenizer, path: Path, changes: dict) -> Path:
    content = {**json.loads(tokenizer.to_str()), **changes}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path
