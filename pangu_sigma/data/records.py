"""Rows of token ids in MindRecord files: write a stream, read any rows by number."""

from concurrent.futures import ThreadPoolExecutor
from typing import Iterable, List, Sequence, Tuple

import numpy as np

from mindspore import dataset
from mindspore.mindrecord import FileWriter

from locmoe_ops.errors import InputError

_SCHEMA = {"ids": {"type": "int32", "shape": [-1]}, "domain": {"type": "int32"}}
_ROWS_A_WRITE = 1024
_MIB = 1 << 20

# All pipelines run on one thread: after an error in one, MindSpore 2.10 crashes when another thread runs the next.
_PIPELINE = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mindrecord")


def write_rows(path: str, rows: Iterable[np.ndarray], domain: int, expected_bytes: int) -> int:
    """Writes rows, each (S+1,) int32, with their domain number; returns how many.

    `expected_bytes`: rough size of all rows, which sets the size of a page (MindRecord's header lists every page).
    """
    writer = FileWriter(path, shard_num=1, overwrite=True)
    page = _page_size(expected_bytes)
    writer.set_header_size(_MIB if expected_bytes < 256 * _MIB else 16 * _MIB)
    writer.set_page_size(page)
    writer.add_schema(_SCHEMA, "rows of sequence_length + 1 token ids")
    count = 0
    waiting: List[dict] = []
    for row in rows:
        waiting.append({"ids": row, "domain": domain})
        count += 1
        if len(waiting) == _ROWS_A_WRITE:
            writer.write_raw_data(waiting)
            waiting = []
    if waiting:
        writer.write_raw_data(waiting)
    writer.commit()
    return count


def _page_size(expected_bytes: int) -> int:
    size = _MIB
    while size < 64 * _MIB and size * 256 < expected_bytes:
        size *= 2
    return size


def read_rows(path: str, numbers: Sequence[int], row_length: int) -> np.ndarray:
    """Rows `numbers` of the file in that order, repeats allowed, (len(numbers), row_length) int32.

    Opening costs some milliseconds and grows with the file's index, so that rows of many steps are best read at once.
    Safe to call from several threads.

    Raises:
        InputError: the file cannot be read, or its rows are not of this length.
    """
    if len(numbers) == 0:
        return np.empty((0, row_length), np.int32)
    distinct, place = np.unique(np.asarray(numbers), return_inverse=True)
    rows, failure = _PIPELINE.submit(_read_distinct, path, [int(number) for number in distinct]).result()
    if failure:
        raise InputError(f"{path}: MindRecord cannot be read ({failure}); expected the file that prepare wrote")
    if len(rows) != len(distinct) or any(row.shape != (row_length,) for row in rows):
        raise InputError(
            f"{path}: found {len(rows)} rows for {len(distinct)} asked for, or rows of another length; "
            f"expected rows of {row_length} ids"
        )
    return np.stack(rows).astype(np.int32, copy=False)[place]


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
