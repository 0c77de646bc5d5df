"""The figures of a report as files for a paper, each with its numbers beside it."""

import csv
import io
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from locmoe_ops.errors import InputError
from pangu_sigma.data.jsonl import shorten
from pangu_sigma.report.collect import Collection
from pangu_sigma.report.figures import all_figures
from pangu_sigma.report.labels import fonts_for
from pangu_sigma.report.plot import INSTALL, can_draw, drawn, texts
from pangu_sigma.report.specs import FigureSpec
from pangu_sigma.runtime.files import check_output, write_output
from pangu_sigma.runtime.messages import log

OPTION = "--figures"
FORMATS = ("pdf", "svg", "png")
PNG_DPI = 300
_MAKER = "pangu-sigma figure"
# What names the maker in each format, and what keeps the time of writing out of it.
_METADATA: Dict[str, Dict[str, object]] = {
    "pdf": {"Creator": _MAKER, "CreationDate": None},
    "svg": {"Creator": _MAKER, "Date": None},
    "png": {"Software": _MAKER},
}
_CSV_MARKERS = (b"curve,", b"variant,", b"bar,")  # how tables of figures begin


def check_formats(text: str) -> Tuple[str, ...]:
    """The formats that `text` names, separated by commas. Raises InputError: one is not known, or none is named."""
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for one in formats or ("",):
        if one not in FORMATS:
            raise InputError(f"--format: found {one!r}, expected some of {', '.join(FORMATS)}, separated by commas")
    if not can_draw():
        raise InputError(f"{OPTION}: matplotlib is not installed, which draws figures; expected {INSTALL}")
    return formats


def write_figures(data: Collection, folder: Path, formats: Sequence[str]) -> List[Path]:
    """Writes every figure that the runs have data for, as wide as a column, and beside each a CSV file of what it
    shows; returns the figures' files. Warns of characters that no installed font has: they are drawn as boxes.

    Args:
        data: the runs.
        folder: where to; it is made.
        formats: of FORMATS.

    Raises InputError: a file of another's is in the way, before anything is written; or the disk refuses.
    """
    specs = [spec for _, group in all_figures(data) for spec in group if spec.content is not None]
    for spec in specs:
        for one in formats:
            check_output(OPTION, folder / f"{spec.name}.{one}", (_MAKER.encode(),))
        check_output(OPTION, folder / f"{spec.name}.csv", _CSV_MARKERS)
    _warn_of_boxes(specs)
    written = []
    for spec in specs:
        for one in formats:
            written.append(folder / f"{spec.name}.{one}")
            write_output(OPTION, written[-1], figure_bytes(spec, one), (_MAKER.encode(),))
        write_output(OPTION, folder / f"{spec.name}.csv", csv_text(spec), _CSV_MARKERS)
    return written


def _warn_of_boxes(specs: Sequence[FigureSpec]) -> None:
    missing = fonts_for(text for spec in specs if spec.content is not None for text in texts(spec.content)).missing
    if missing:
        log.warning(
            "%s: no installed font has the characters %s, which are drawn as boxes; install a font that has them "
            "(for Chinese, the package fonts-noto-cjk) and repeat the command",
            OPTION,
            shorten(missing, most=40),
        )


def figure_bytes(spec: FigureSpec, kind: str) -> bytes:
    """The figure as a file, the same bytes each time; text is drawn as paths in SVG, so that it looks alike anywhere.

    Args:
        spec: with a content.
        kind: of FORMATS.
    """
    assert spec.content is not None
    content = io.BytesIO()
    with drawn(spec.content, {"svg.fonttype": "path", "svg.hashsalt": spec.name}) as figure:
        figure.savefig(content, format=kind, dpi=PNG_DPI, metadata=_METADATA[kind])
    return content.getvalue()


def csv_text(spec: FigureSpec) -> str:
    """What the figure shows, in full precision."""
    assert spec.content is not None
    header, rows = spec.content.table()
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
