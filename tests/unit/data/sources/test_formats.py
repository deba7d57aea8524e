"""Data files: every format gives the same rows, and every fault has its location and fix."""

import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from dtl.config.schema import Source
from dtl.data.sources.rows import Row, open_rows
from tests.unit.data.sources.source_files import (
    ROWS,
    WRITERS,
    as_json,
    as_json_lines,
    as_parquet,
    get_error,
    read_fields,
    read_rows,
)


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_reads_the_same_rows(name):
    WRITERS[name](Path(name), ROWS)
    rows = open_rows(Source(path=name), {})
    assert [row.fields for row in rows] == ROWS
    assert [row.index for row in rows] == [0, 1, 2, 3]
    assert rows.columns == ("text", "label")
    assert rows.name == name


@pytest.mark.parametrize("name", WRITERS)
def test_limit_and_columns_mean_the_same_in_each_format(name):
    WRITERS[name](Path(name), ROWS)
    assert read_fields(name, {"body": "text"}, limit=2) == [
        {"label": row["label"], "body": row["text"]} for row in ROWS[:2]
    ]


def test_locations_are_lines_or_rows_of_the_file():
    Path("a.jsonl").write_text('{"text": "x"}\n\n  \n{"text": "y"}\r\n{"text": "z"}')
    assert [row.location for row in read_rows("a.jsonl")] == ["a.jsonl:1", "a.jsonl:4", "a.jsonl:5"]
    Path("a.csv").write_text('text,label\n"one\ntwo\nthree",a\n\nfour,b\n')
    assert [row.location for row in read_rows("a.csv")] == ["a.csv:2", "a.csv:6"]
    as_parquet(Path("a.parquet"), ROWS)
    assert [row.location for row in read_rows("a.parquet", limit=2)] == [
        "a.parquet: row 1",
        "a.parquet: row 2",
    ]
    as_json(Path("a.json"), ROWS)
    assert read_rows("a.json")[1] == Row(1, "a.json: item 2", ROWS[1])


def test_nested_values_are_retained():
    chat = [{"messages": [{"role": "user", "content": "Hi"}], "count": 3}]
    for name in ("data.jsonl", "data.json", "data.parquet", "data.arrow", "stream.arrow"):
        WRITERS[name](Path(name), chat)
        assert read_fields(name) == chat


def test_byte_order_mark_is_ignored():
    for name in ("data.jsonl", "data.json", "data.csv", "data.tsv"):
        WRITERS[name](Path(name), ROWS)
        Path(name).write_bytes(b"\xef\xbb\xbf" + Path(name).read_bytes())
        assert read_fields(name) == ROWS


def test_csv_values_stay_text_and_may_be_long():
    long = "x" * 200_000
    Path("a.csv").write_text(f"text,label\n{long},007\n")
    assert read_fields("a.csv") == [{"text": long, "label": "007"}]


def test_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    as_json_lines(tmp_path / "a.jsonl", ROWS)
    assert read_fields("~/a.jsonl") == ROWS


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "data.parquet", "data.arrow"])
def test_a_large_file_is_not_held_in_memory(name):
    rows = [{"text": os.urandom(1000).hex()} for _ in range(20_000)]  # 40 MB
    if name.endswith("parquet"):
        parquet.write_table(pa.Table.from_pylist(rows), name, row_group_size=1000)
    else:
        WRITERS[name](Path(name), rows)
    tracemalloc.start()
    count = sum(1 for _ in open_rows(Source(path=name), {}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 12_000_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": "y"\n', "a.jsonl:2: invalid JSON (Expecting"),
        ("a.jsonl", b'{"text": "x"}\n["y"]\n', "a.jsonl:2: the row is a list, not a JSON object"),
        ("a.jsonl", b"null\n", "a.jsonl:1: the row is null"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "a.jsonl:2: not UTF-8 text (byte 0xff)"),
        ("a.jsonl", b"", "data.train: a.jsonl has no rows"),
        ("a.jsonl", b"\n\n", "data.train: a.jsonl has no rows"),
        ("a.json", b"[]", "data.train: a.json has no rows"),
        ("a.json", b'[{"text": "x"},\n {"text" "y"}]', "a.json:2: invalid JSON"),
        ("a.json", b'[{"text": "x"}, 3]', "a.json: item 2: the row is a number"),
        ("a.json", b'[{"text": "\xff"}]', "a.json: not UTF-8 text (byte 0xff)"),
        ("a.csv", b"", "data.train: a.csv has no rows"),
        ("a.csv", b"text,label\n", "data.train: a.csv has no rows"),
        ("a.csv", b"text,label\nx,y\na,b,c\n", "a.csv:3: 3 values for 2 columns"),
        ("a.csv", b"text,label\nx\n", "a.csv:2: 1 values for 2 columns"),
        ("a.csv", b'text,label\nx,y\n"x,y\n', "a.csv:3: the row cannot be parsed ("),
        ("a.csv", b"text,text\nx,y\n", "a.csv:1: two columns are named 'text'"),
        ("a.csv", b"text,label\nx,y\n\xe4,y\n", "a.csv:3: not UTF-8 text (byte 0xe4)"),
        ("a.tsv", b"text\tlabel\nx\n", "a.tsv:2: 1 values for 2 columns"),
        ("a.parquet", b"PAR1 it is not", "a.parquet: not a readable Parquet file ("),
        ("a.arrow", b"ARROW1 it is not", "a.arrow: not a readable Arrow file ("),
        ("a.arrow", b"neither a file nor a stream", "a.arrow: not a readable Arrow file ("),
        (
            "a.xlsx",
            b"words",
            "a.xlsx: '.xlsx' files are not supported. Fix: export the table as CSV",
        ),
        (
            "words",
            b"words",
            "words: the file has no suffix. Fix: convert the file to one of .jsonl,",
        ),
    ],
)
def test_file_fault_has_its_location(name, content, message):
    Path(name).write_bytes(content)
    error = get_error(name)
    assert str(error).startswith(message)
    assert len(error.faults) == 1
    assert error.faults[0].fix
    assert error.exit_code == 2
