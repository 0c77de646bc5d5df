"""Rows of token ids: documents are packed into them, and they lie in MindRecord files, of which any can be read by
number.
"""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterable, Iterator, List, Sequence, Tuple

import numpy as np

from mindspore import dataset
from mindspore.mindrecord import FileWriter

from locmoe_ops.errors import InputError
from pangu_sigma.errors import OutputNotWritten

_SCHEMA = {"ids": {"type": "int32", "shape": [-1]}, "domain": {"type": "int32"}}
_ROWS_A_WRITE = 1024
_MIB = 1 << 20
_INDEX_BYTES = 128  # of a row in the index; found here: about 50

# All pipelines run on one thread: after an error in one, MindSpore 2.10 crashes when another thread runs the next.
_PIPELINE = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mindrecord")


def pack_rows(documents: Iterable[Sequence[int]], sequence_length: int) -> Iterator[np.ndarray]:
    """Joins the ids of `documents` (already tagged and ended) and cuts rows, each (`sequence_length` + 1,) int32.

    A row starts with the id that the row before it ends with, so that every id but the first is a target once.
    The tail that fills no row is dropped.
    """
    waiting: List[int] = []
    for ids in documents:
        waiting.extend(ids)
        start = 0
        while len(waiting) - start > sequence_length:
            yield np.asarray(waiting[start : start + sequence_length + 1], np.int32)
            start += sequence_length
        del waiting[:start]


def write_rows(path: str, rows: Iterable[np.ndarray], domain: int, expected_bytes: int) -> int:
    """Writes rows, each (S+1,) int32, with their domain number; returns how many.

    Args:
        path: the file; its index lies beside it, at `path`.db.
        rows: the rows, in their order.
        domain: their domain's number.
        expected_bytes: rough size of all rows, which sets the size of a page (MindRecord's header lists every page).

    Raises:
        OutputNotWritten: the disk is full, or no file may become so large.
    """
    writer = FileWriter(path, shard_num=1, overwrite=True)
    page, header = _MIB, _MIB if expected_bytes < 256 * _MIB else 16 * _MIB
    while page < 64 * _MIB and page * 256 < expected_bytes:
        page *= 2
    writer.set_header_size(header)
    writer.set_page_size(page)
    writer.add_schema(_SCHEMA, "rows of sequence_length + 1 token ids")
    count = 0
    waiting: List[dict] = []

    def write() -> None:
        size = sum(row["ids"].nbytes for row in waiting)
        _require_room(Path(path), header + 2 * page + 2 * size + _INDEX_BYTES * (count + len(waiting)))
        writer.write_raw_data(waiting)

    try:
        for row in rows:
            waiting.append({"ids": row, "domain": domain})
            count += 1
            if len(waiting) == _ROWS_A_WRITE:
                write()
                waiting = []
        if waiting:
            write()
        writer.commit()
    except RuntimeError as error:
        if isinstance(error, OutputNotWritten):
            raise
        raise OutputNotWritten(
            f"{path}: cannot be written ({_reason(error)}); expected a writable disk with more room"
        ) from None
    return count


def _require_room(path: Path, size: int) -> None:
    """Takes `size` bytes of the disk for a moment, behind those of the file: MindSpore 2.10 ends with a memory error
    where a write fails.

    Raises OutputNotWritten: there is no room for them.
    """
    written = path.stat().st_size if path.exists() else 0
    try:
        with tempfile.TemporaryFile(dir=path.parent) as room:
            os.posix_fallocate(room.fileno(), written, size)
    except OSError as error:
        raise OutputNotWritten(
            f"{path}: cannot be written ({str(error.strerror).lower()}); expected room for {size} more bytes"
        ) from None


def _reason(error: RuntimeError) -> str:
    """What MindSpore says in the midst of its report to its developers."""
    lines = [line.removeprefix("[ERROR]").strip() for line in str(error).splitlines() if line.startswith("[ERROR]")]
    lines += [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0].rstrip(".")


def read_rows(path: str, numbers: Sequence[int], row_length: int) -> np.ndarray:
    """Some rows of a file, (len(numbers), row_length) int32.

    Args:
        path: the file, as `write_rows` wrote it.
        numbers: of the rows, in the order wanted; repeats are allowed.
        row_length: ids of each row.

    Opening costs some milliseconds and grows with the file's index, so that rows of many steps are best read at once.
    Safe to call from several threads.

    Raises:
        InputError: the file cannot be read, or its rows are not of this length.
    """
    if len(numbers) == 0:
        return np.empty((0, row_length), np.int32)
    distinct, index = np.unique(np.asarray(numbers), return_inverse=True)
    rows, failure = _PIPELINE.submit(_read_distinct, path, [int(number) for number in distinct]).result()
    if failure:
        raise InputError(f"{path}: MindRecord cannot be read ({failure}); expected the file that prepare wrote")
    if len(rows) != len(distinct) or any(row.shape != (row_length,) for row in rows):
        raise InputError(
            f"{path}: found {len(rows)} rows for {len(distinct)} asked for, or rows of another length; "
            f"expected rows of {row_length} ids"
        )
    return np.stack(rows).astype(np.int32, copy=False)[index]


def _read_distinct(path: str, numbers: List[int]) -> Tuple[List[np.ndarray], str]:
    """Rows, or why there are none. Returns the reason: an exception would keep the pipeline alive in its traceback."""
    iterator = None
    try:
        sampler = dataset.SubsetSampler(numbers)
        source = dataset.MindDataset(path, columns_list=["ids"], num_parallel_workers=1, sampler=sampler)
        iterator = source.create_tuple_iterator(num_epochs=1, output_numpy=True)
        return [ids for (ids,) in iterator], ""
    except (RuntimeError, ValueError) as error:
        return [], (str(error).strip() or type(error).__name__).splitlines()[0]
    finally:
        if iterator is not None:
            iterator.stop()
