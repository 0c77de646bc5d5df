"""Parquet files, as datasets are shared on the Hugging Face Hub: a document a row. Needs pyarrow (extra `parquet`).

Only the columns of text and domain are read, some rows at a time. A row whose text is null holds none.
"""

from pathlib import Path
from typing import Any, Iterator

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import printable
from pangu_sigma.data.jsonl import Record, shorten

SUFFIXES = frozenset({".parquet"})
_ROWS_AT_ONCE = 256


def is_parquet(path: Path) -> bool:
    """Whether a file's name says that it is a Parquet file."""
    return path.suffix.lower() in SUFFIXES


def read_records(path: Path, text: str, domain: str) -> Iterator[Record]:
    """The rows of a file, numbered from 1 in messages, with the fields `text` and, where the file has it, `domain`.

    Args:
        path: the file.
        text: name of the column of documents, which must be there.
        domain: name of the column that says whose document each is.

    Raises:
        InputError: pyarrow is not installed, the file cannot be read, there is no column of text, or a column holds
            something else than strings.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"{path}: is a Parquet file, but pyarrow, which reads it, is not installed; expected it, as "
            "pip install 'pyarrow<22' does (newer ones need NumPy 2)"
        ) from None
    number = 0
    try:
        with path.open("rb") as stream:
            file = pyarrow.parquet.ParquetFile(stream)
            columns = [name for name in (text, domain) if name in file.schema_arrow.names]
            if text not in columns:
                found = ", ".join(file.schema_arrow.names) or "none"
                raise InputError(
                    f"{path}: column `{text}` is missing; expected documents in it (columns found: "
                    f"{shorten(printable(found))}); data.prepare.text_key names another"
                )
            for name in columns:
                _check_strings(path, name, file.schema_arrow.field(name).type)
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    yield Record({**values, text: values[text] or ""}, f"{path} row {number}")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        reason = shorten(" ".join(str(getattr(error, "strerror", None) or error).split()))
        where = f" after row {number}" if number else ""
        raise InputError(f"{path}: cannot be read{where} ({reason}); expected a Parquet file") from None


def _check_strings(path: Path, name: str, kind: Any) -> None:
    """Raises InputError where a column's type is none of Arrow's kinds of strings, in a dictionary or not."""
    if str(getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind) not in (
        "string",
        "large_string",
        "string_view",
        "null",
    ):
        raise InputError(f"{path}: column `{name}` holds {shorten(str(kind))}; expected strings")
