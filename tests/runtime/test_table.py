"""Tables: what is read, what is refused and with which words, and that a pipe's rows come as they arrive."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from odestream.runtime.errors import InputError, TimeError
from odestream.runtime.table import Row, _natural, read_bytes, read_rows, read_table
from odestream.runtime.timestamps import TICKS_PER_STEP, step_spec

SECONDS = TimeSpec()
FORECAST = TaskSpec("forecast", ("a", "b"), ("a",), time="t")
CLASSIFY = TaskSpec("classify", ("a",), ("kind",), time="t", stream="id")


def rows_of(
    text: str | bytes, task: TaskSpec = FORECAST, time: TimeSpec = SECONDS, last: dict[str, int] | None = None
) -> list[Row]:
    return list(read_rows(io.BytesIO(text.encode() if isinstance(text, str) else text), task, time, last))


def contents(rows: list[Row]) -> list[tuple[object, ...]]:
    return [(r.line, r.time, r.stream, r.ticks, r.x.tolist(), r.mask.tolist(), r.label) for r in rows]


def test_row_holds_what_the_line_says() -> None:
    rows = rows_of("b,t,ignored,a\n2.5,0.5,?,\n,1,?,-1e3\n")
    assert contents(rows) == [
        (2, "0.5", "", 500_000_000, [0.0, 2.5], [0.0, 1.0], None),
        (3, "1", "", 10**9, [-1000.0, 0.0], [1.0, 0.0], None),
    ]
    assert all(array.dtype == np.float32 for row in rows for array in (row.x, row.mask))


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_and_byte_order_mark_change_nothing(end: str) -> None:
    text = 't,a,b\n1,2,3\n\n2,,"4"\n'
    assert contents(rows_of(text)) == contents(rows_of(b"\xef\xbb\xbf" + text.replace("\n", end).encode()))


def test_last_line_needs_no_end_and_cells_may_be_spaced() -> None:
    assert contents(rows_of("t, a ,b\n 1 , 2,3 ")) == contents(rows_of("t,a,b\n1,2,3\n"))


def test_streams_interleave_and_each_has_its_own_clock() -> None:
    rows = rows_of("t,id,a,kind\n5,x,1,on\n1,y,2,\n6,x,3,off\n2,y,4,on\n", CLASSIFY)
    assert [(r.stream, r.ticks // 10**9, r.label) for r in rows] == [
        ("x", 5, "on"),
        ("y", 1, None),
        ("x", 6, "off"),
        ("y", 2, "on"),
    ]


def test_without_a_time_column_each_stream_counts_its_rows() -> None:
    task = TaskSpec("classify", ("a",), ("kind",), stream="id")
    rows = rows_of("id,a\nx,1\ny,1\nx,1\nz,1\n", task, step_spec(), last={"z": 7 * TICKS_PER_STEP})
    assert [r.ticks // TICKS_PER_STEP for r in rows] == [0, 0, 1, 8]


def test_header_alone_has_no_rows() -> None:
    assert rows_of("t,a,b\n") == []


BAD = {
    "empty file": ("", InputError, r"the file is empty; give a table"),
    "only blank lines": ("\n\r\n", InputError, r"the file is empty"),
    "missing column": (
        "t,a,c\n1,2,3\n",
        InputError,
        r"no column 'b', the table has t, a, c; rename one or name another",
    ),
    "missing time": ("a,b\n1,2\n", InputError, r"no column 't', the table has a, b;"),
    "repeated column": ("t,a,b,a\n", InputError, r"column 'a' stands twice in the header; rename one"),
    "text": ("t,a,b\n1,2,3\n2,low,3\n", InputError, r"line 3 column 'a': 'low' is not a number; correct it"),
    "underscore": ("t,a,b\n1,2_0,3\n", InputError, r"line 2 column 'a': '2_0' is not a number"),
    "nan": ("t,a,b\n1,2,NaN\n", InputError, r"line 2 column 'b': 'NaN' is not a finite number; leave the cell empty"),
    "infinity": (
        "t,a,b\n1,-inf,3\n",
        InputError,
        r"line 2 column 'a': '-inf' is not a finite number; leave the cell empty",
    ),
    "overflow": ("t,a,b\n1,1e39,3\n", InputError, r"line 2 column 'a': '1e39' is beyond float32 .*; rescale"),
    "overflow to infinity": ("t,a,b\n1,1e999,3\n", InputError, r"line 2 column 'a': '1e999' is beyond float32"),
    "short row": ("t,a,b\n1,2\n", InputError, r"line 2: 2 cells under a header of 3; correct the line"),
    "long row": ("t,a,b\n1,2,3,4\n", InputError, r"line 2: 4 cells under a header of 3; correct the line"),
    "NUL": ("t,a,b\n1,2,\0\n", InputError, r"line 2: holds a NUL byte, .*; save the table as UTF-8 CSV"),
    "not UTF-8": (b"t,a,b\n1,2,\xff\n", InputError, r"not UTF-8 text .*; save the table as UTF-8 CSV"),
    "open quote": ('t,a,b\n1,2,"3\n', InputError, r"line 2: not CSV .*; correct the line"),
    "huge cell": ("t,a,b\n1,2," + "3" * 200_000, InputError, r"line 2: not CSV .*; correct the line"),
    "equal times": (
        "t,a,b\n1,2,3\n1.0,2,3\n",
        TimeError,
        r"line 3: time 1.0 does not come after 1; train with --stream",
    ),
    "backward times": ("t,a,b\n5,2,3\n1,2,3\n", TimeError, r"line 3: time 1 does not come after 5; .* sort the rows"),
    "empty time": ("t,a,b\n,2,3\n", TimeError, r"line 2: the time is empty; give every row a time"),
    "text for a time": ("t,a,b\nnoon,2,3\n", TimeError, r"line 2: time 'noon' is not a finite number of s; write it"),
    "time beyond 64 bits": ("t,a,b\n1e10,2,3\n", TimeError, r"line 2: time '1e10' does not fit .*; check"),
}


@pytest.mark.parametrize(("text", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_table_is_refused_in_words(text: str | bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        rows_of(text)
    assert "\n" not in str(caught.value)


def test_times_must_come_after_a_resumed_snapshot() -> None:
    remedy = r"leave out --resume, or the rows up to then \(--skip-seen\)$"
    with pytest.raises(
        TimeError, match=f"line 2: time 3 does not come after 3, where the resumed stream ended; {remedy}"
    ):
        rows_of("t,a,b\n3,1,1\n", last={"": 3 * 10**9})
    with pytest.raises(TimeError, match="line 3: time 4 does not come after 5; .* sort the rows"):
        rows_of("t,a,b\n5,1,1\n4,1,1\n", last={"": 3 * 10**9})


def test_interleaved_streams_are_told_of_the_column_that_tells_them_apart() -> None:
    """Where one was named, the time of a single stream goes back, and only sorting helps."""
    text = "t,id,a,b,kind\n1,x,1,1,on\n1,y,1,1,on\n2,x,1,1,on\n1.5,x,1,1,on\n"
    with pytest.raises(TimeError, match="line 3: .*; train with --stream COLUMN where a column tells several streams"):
        rows_of(text)
    with pytest.raises(TimeError, match="line 5: time 1.5 of stream 'x' does not come after 2; sort the rows by time"):
        rows_of(text, CLASSIFY)


def test_empty_stream_name_is_refused() -> None:
    with pytest.raises(InputError, match="line 3: the stream's name is empty; give every row one"):
        rows_of("t,id,a\n1,x,1\n2,,1\n", CLASSIFY)


def test_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened .No such file or directory.; give a file"):
        list(read_rows(tmp_path / "absent.csv", FORECAST, SECONDS))
    with pytest.raises(InputError, match="cannot be opened .Is a directory.; give a file"):
        list(read_rows(tmp_path, FORECAST, SECONDS))


def test_row_of_a_pipe_is_given_before_the_next_is_written() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "wb", buffering=0) as source, os.fdopen(read, "rb") as sink:
        source.write(b"t,a,b\n1,2,3\n")
        rows: Iterator[Row] = read_rows(sink, FORECAST, SECONDS)
        assert next(rows).ticks == 10**9
        source.write(b"2,2,3\n")
        assert next(rows).ticks == 2 * 10**9


@given(
    st.lists(
        st.tuples(st.floats(width=32, allow_nan=False, allow_infinity=False), st.booleans()), min_size=1, max_size=20
    )
)
def test_float32_values_and_holes_survive_writing_and_reading(cells: list[tuple[float, bool]]) -> None:
    lines = [
        f"{i},{np.float32(value)!s},{'' if hole else np.float32(value)!s}" for i, (value, hole) in enumerate(cells)
    ]
    rows = rows_of("\n".join(["t,a,b", *lines]))
    assert [row.x[0] for row in rows] == [np.float32(value) for value, _ in cells]
    assert [row.mask[1] == 0 for row in rows] == [hole for _, hole in cells]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_a_typed_error(data: bytes) -> None:
    with contextlib.suppress(InputError):
        rows_of(b"t,a,b\n" + data)


def test_table_groups_streams_and_indexes_labels(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("t,id,a,kind\n5,x,1,10\n1,y,2,\n6,x,,9\n2,y,4,on\n")
    table = read_table(path, CLASSIFY)
    assert table.labels == ("9", "10", "on")
    assert table.time == TimeSpec()
    x, y = table.series
    assert (x.name, y.name) == ("x", "y")
    np.testing.assert_array_equal(x.ticks, [5 * 10**9, 6 * 10**9])
    np.testing.assert_array_equal(x.x, [[1.0], [0.0]])
    np.testing.assert_array_equal(x.mask, [[1.0], [0.0]])
    np.testing.assert_array_equal(x.labels, [1, 0])
    np.testing.assert_array_equal(y.labels, [-1, 2])


def test_table_chooses_its_clock_from_the_whole_column(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("t,a,b\n1690-01-01,1,2\n2020-01-01,1,2\n")
    table = read_table(path, FORECAST)
    assert (table.time.kind, table.time.tick_seconds) == ("iso", 1e-6)
    assert table.series[0].ticks[0] < -(280 * 365 * 86_400 * 10**6) + 1


def test_table_whose_times_lie_further_apart_than_64_bits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("t,a,b\n-5e12,1,2\n0,1,2\n5e12,1,2\n")
    with pytest.raises(TimeError, match="line 4: the time lies 10{19} ticks after .* 64 bits; give a shorter"):
        read_table(path, FORECAST, unit="step")


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("t,a,b\n", FORECAST, "the time column is empty; give every row a time"),
        ("a,b\n", TaskSpec("forecast", ("a", "b")), "a header without rows; give a table"),
        ("t,id,a\n1,x,1\n", CLASSIFY, "no column 'kind', the table has t, id, a;"),
        ("t,id,a,kind\n1,x,1,\n", CLASSIFY, "column 'kind' holds no label; name the column"),
        ("t,a,b\nx,1,1\n", FORECAST, "column 't': time 'x' is neither a number nor a date .*; rewrite"),
    ],
)
def test_table_that_cannot_train_is_refused(tmp_path: Path, text: str, task: TaskSpec, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_table(path, task)


def test_labels_that_read_as_no_finite_number_are_words_and_order_the_classes_alike_in_every_process() -> None:
    labels = ["nan", "2", "10", "NaN", "1", "inf", "-nan", "-inf", "off", "1.0"]
    expected = ["1", "1.0", "2", "10", "-inf", "-nan", "NaN", "inf", "nan", "off"]
    for order in itertools.islice(itertools.permutations(labels), 0, None, 9973):
        assert sorted(order, key=_natural) == expected


def test_unknown_label_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("t,id,a,kind\n1,x,1,on\n2,x,1,odd\n")
    task = TaskSpec("classify", ("a",), ("kind",), ("off", "on"), "t", "id")
    with pytest.raises(InputError, match="line 3: label 'odd' is none of off, on; train again"):
        read_table(path, task)


def test_text_is_read_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(256)) * 300)
    assert bytes(read_bytes(path)) == path.read_bytes()
