"""Random access to the rows of a file."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from dtl.config.schema import Source
from dtl.core.errors import DtlError
from dtl.data.cache.row_index import open_row_index
from dtl.data.sources import table_cache, tables
from dtl.data.sources.data_file import DataFile, detect_compression
from dtl.data.sources.formats import open_reader as open_file_reader
from dtl.data.sources.random_access import open_random_access_readers
from dtl.data.sources.results import FileFault, RowPosition
from dtl.data.sources.rows import open_rows


def open_reader(path, name="data", **options):
    reader = open_file_reader(
        DataFile(path, name, detect_compression(path)), Source(path=str(path), **options)
    )
    return open_random_access_readers([reader], location="data.train")[0]


def positions(path):
    return [position for position, _ in open_reader(path).iter_rows()]


def texts_at(path):
    """Read each row singly, the last one first."""
    reader = open_reader(path)
    return [reader.read_row(position)[1]["text"] for position in reversed(positions(path))][::-1]


def test_json_lines_with_blank_lines_and_multibyte_characters(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [
        '\ufeff{"text": "a"}',
        "",
        '{"text": "éé"}',
        "   ",
        '{"text": "漢"}\r',
        '{"text": "z"}',
    ]
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    # 3 bytes of mark, 13, a line break; a line break; 16 and one; 3 and one; 15 and two
    assert positions(path) == [
        RowPosition(3, 1),
        RowPosition(18, 3),
        RowPosition(39, 5),
        RowPosition(56, 6),
    ]
    assert texts_at(path) == ["a", "éé", "漢", "z"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_delimited_text_with_quoted_line_breaks(tmp_path, mark):
    path = tmp_path / "rows.csv"
    content = mark + 'n,text\n1,"two\nlines, ""é"""\n\n2,"\r\n"\r\n3,plain\n'
    path.write_bytes(content.encode())
    before = 3 * len(mark)
    # The header has 7 bytes, the two lines of the first row 7 and 15, the empty one 1, the next 8.
    starts = [7, 7 + 7 + 15 + 1, 7 + 7 + 15 + 1 + 8]
    assert [position.offset for position in positions(path)] == [before + start for start in starts]
    assert [position.number for position in positions(path)] == [2, 5, 7]
    assert texts_at(path) == ['two\nlines, "é"', "\r\n", "plain"]
    assert path.read_bytes()[positions(path)[1].offset :].startswith(b'2,"\r\n"')


def test_tables_with_several_row_groups_and_batches(tmp_path):
    texts = [f"row {number}" for number in range(11)]
    table = pa.table({"text": texts})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=4)
    with pa.ipc.new_file(tmp_path / "rows.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=3)
    for name in ("rows.parquet", "rows.arrow"):
        assert positions(tmp_path / name) == [
            RowPosition(number, number + 1) for number in range(11)
        ]
        assert texts_at(tmp_path / name) == texts
        assert open_reader(tmp_path / name, "x").read_row(RowPosition(9, 10))[0] == "x: row 10"
    version = table_cache.FileVersion.from_path(tmp_path / "rows.parquet")
    assert table_cache.locate_parquet_batch(version, 8)[1] == 0  # the third group's first
    assert table_cache.locate_parquet_batch(version, 7)[1] == 3


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_changed_file_is_a_fault(tmp_path, name):
    """Even if the new file has the same size."""

    def write(text):
        if name == "rows.jsonl":
            (tmp_path / name).write_text(json.dumps({"text": text}) + "\n")
        else:
            parquet.write_table(pa.table({"text": [text]}), tmp_path / name)

    write("a")
    reader, (position,) = open_reader(tmp_path / name), positions(tmp_path / name)
    assert reader.read_row(position)[1] == {"text": "a"}
    write("b")
    fault = reader.read_row(position)
    assert isinstance(fault, FileFault) and "has changed" in fault.problem
    assert open_reader(tmp_path / name).read_row(position)[1] == {"text": "b"}
    (tmp_path / name).unlink()
    assert "cannot be read (No such file" in reader.read_row(position).problem


def test_files_without_random_access_are_an_error(tmp_path, monkeypatch):
    (tmp_path / "rows.json").write_text('[{"text": "a"}]')
    with pytest.raises(
        DtlError, match=r"data.train.streaming: data is one JSON list.*one object per line"
    ):
        open_reader(tmp_path / "rows.json")
    (tmp_path / "lines.json").write_text('{"text": "a"}\n')
    assert texts_at(tmp_path / "lines.json") == ["a"]
    parquet.write_table(pa.table({"text": ["a" * 50, "b" * 50]}), tmp_path / "rows.parquet")
    monkeypatch.setattr(tables, "MAX_ROW_GROUP_BYTES", 20)
    with pytest.raises(DtlError, match=r"row group of .* and 2 rows, .*rewrite it with row groups"):
        open_reader(tmp_path / "rows.parquet")


def test_row_index_has_valid_rows_of_all_files_within_the_limit(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"text": "a0"}\nbad\n{"text": "a1"}\n')
    (tmp_path / "data" / "b.jsonl").write_text('\n{"text": "b0"}\n{"text": "b1"}\n')
    rows = open_rows(Source(path="data", limit=3), {}, skip_invalid=True)
    readers = rows.open_readers("data.train")
    index = open_row_index(rows, readers, key="k", writes=True)
    assert index.offsets.read(0, 3).tolist() == [0, 19, 1]
    assert index.line_numbers.read(0, 3).tolist() == [1, 3, 2]
    assert index.scan == rows.scan() and index.scan.faults[0].location == "data/a.jsonl:2"
    found = [
        rows.validate_row(n, readers[file].read_row(position))
        for n in range(3)
        for file, position in [index.locate(n)]
    ]
    assert found == list(rows)
    again = open_row_index(rows, (), key="k", writes=False)  # nothing is read
    assert again.offsets.read(0, 3).tolist() == [0, 19, 1]


def test_row_index_of_an_invalid_row_raises_with_its_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"te\n')
    rows = open_rows(Source(path="rows.jsonl"), {})
    with pytest.raises(DtlError, match=r"rows\.jsonl:3: invalid JSON"):
        open_row_index(rows, rows.open_readers("data.train"), key="k", writes=True)
    assert list((tmp_path / "cache" / "indexed").iterdir()) == []


def test_row_index_needs_no_memory_for_rows(tmp_path):
    """Ten times the rows need hardly more memory."""
    import tracemalloc

    def peak_memory(count):
        line = json.dumps({"text": "word " * 200}) + "\n"
        (tmp_path / f"{count}.jsonl").write_text(line * count)
        rows = open_rows(Source(path=f"{count}.jsonl"), {})
        readers = rows.open_readers("data.train")
        tracemalloc.start()
        try:
            open_row_index(rows, readers, key=str(count), writes=True)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_memory(100)
    few, many = peak_memory(400), peak_memory(4000)
    assert many < few + 300_000  # bytes; the rows are 4 MB, their numbers 64 KB
