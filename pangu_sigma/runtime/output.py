"""What a command writes for people and for pipes: no character ends it, whatever the terminal's encoding."""

import io
import os
import sys
from typing import Any

from pangu_sigma.runtime.strict_json import dumps


def make_streams_lenient() -> None:
    """Lets standard output and error take any text, and standard input give any bytes; a closed one leads nowhere.

    A character that the encoding lacks (as with PYTHONIOENCODING=ascii or gbk), and half of a surrogate pair in any, is
    written as an escape such as \\u4e2d. Bytes of input that are no text arrive as lone surrogates, which whoever takes
    the text refuses.
    """
    _open_standard_descriptors()
    for name, errors in (("stdin", "surrogateescape"), ("stdout", "backslashreplace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _open_standard_descriptors() -> None:
    """Keeps 0, 1 and 2 from becoming descriptors of files that are opened later: what libraries print would go there."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free


def print_json(value: Any) -> None:
    """Prints a value as JSON, on one line; characters beyond ASCII as they are where the output can be any of them."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("_", "-")
    print(dumps(value, ensure_ascii=encoding not in ("utf-8", "utf8", "utf-8-sig")))
