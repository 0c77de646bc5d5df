from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locmoe_ops.errors import InputError
from pangu_sigma.data.records import pack_rows, read_rows, write_rows


@pytest.fixture
def rows() -> np.ndarray:
    return np.arange(2500 * 9, dtype=np.int32).reshape(2500, 9)


def test_any_rows_in_any_order(tmp_path: Path, rows: np.ndarray) -> None:
    path = str(tmp_path / "a b 天" / "train-en.mindrecord")
    Path(path).parent.mkdir()
    assert write_rows(path, iter(rows), domain=1, expected_bytes=rows.nbytes) == 2500
    for numbers in ([2499, 0, 7, 7, 1024], range(2500), [3]):
        found = read_rows(path, numbers, 9)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, rows[list(numbers)])
    assert read_rows(path, [], 9).shape == (0, 9)


def test_several_pages(tmp_path: Path) -> None:
    rows = np.random.default_rng(3).integers(0, 2**31 - 1, (3000, 257), dtype=np.int32)
    path = str(tmp_path / "x.mindrecord")
    write_rows(path, iter(rows), domain=0, expected_bytes=1)
    np.testing.assert_array_equal(read_rows(path, [2999, 1500, 0], 257), rows[[2999, 1500, 0]])


def test_a_renamed_folder_still_reads(tmp_path: Path, rows: np.ndarray) -> None:
    (tmp_path / "old").mkdir()
    write_rows(str(tmp_path / "old" / "x.mindrecord"), iter(rows), domain=0, expected_bytes=rows.nbytes)
    (tmp_path / "old").rename(tmp_path / "new")
    np.testing.assert_array_equal(read_rows(str(tmp_path / "new" / "x.mindrecord"), [5], 9), rows[5:6])


def test_rows_of_another_length_are_refused(tmp_path: Path, rows: np.ndarray) -> None:
    path = str(tmp_path / "x.mindrecord")
    write_rows(path, iter(rows), domain=0, expected_bytes=rows.nbytes)
    with pytest.raises(InputError, match=r"x\.mindrecord.*expected rows of 10 ids"):
        read_rows(path, [0], 10)


@pytest.mark.parametrize("content", [b"", b"no MindRecord", None])
def test_an_unreadable_file_is_named_in_one_line(tmp_path: Path, content: object) -> None:
    path = tmp_path / "x.mindrecord"
    if isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.mindrecord") as caught:
        read_rows(str(path), [0], 10)
    assert "\n" not in str(caught.value)


def test_threads_read_on_after_errors(tmp_path: Path, rows: np.ndarray) -> None:
    good, bad = str(tmp_path / "good.mindrecord"), str(tmp_path / "bad.mindrecord")
    for path in (good, bad):
        write_rows(path, iter(rows), domain=0, expected_bytes=rows.nbytes)
    content = bytearray(Path(bad).read_bytes())
    content[1 << 20 :] = b"\xff" * (len(content) - (1 << 20))  # the pages behind the header
    Path(bad).write_bytes(content)

    def read(number: int) -> bool:
        try:
            found = read_rows(bad if number % 3 == 0 else good, [number, 5, number], 9)
        except InputError:
            return False
        return bool((found == rows[[number, 5, number]]).all())

    with ThreadPoolExecutor(max_workers=4) as pool:
        assert list(pool.map(read, range(30))) == [number % 3 != 0 for number in range(30)]


@given(st.lists(st.lists(st.integers(0, 9), max_size=30), max_size=12), st.integers(1, 9))
def test_rows_cover_the_stream_once(documents: list, length: int) -> None:
    stream = [i for document in documents for i in document]
    rows = list(pack_rows(documents, length))
    assert len(rows) == max(0, len(stream) - 1) // length
    for number, row in enumerate(rows):
        assert row.dtype == np.int32
        assert row.tolist() == stream[number * length : (number + 1) * length + 1]
