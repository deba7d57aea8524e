"""Single rows of a file, read where they stand."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from dtl.config.schema import Source
from dtl.core.errors import DtlError
from dtl.data.cache.row_index import open_row_index
from dtl.data.sources import random_access as seeking
from dtl.data.sources.random_access import open_random_access_readers
from dtl.data.sources.results import FileFault, RowPosition
from dtl.data.sources.rows import open_rows


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DTL_CACHE", str(tmp_path / "cache"))


def seeker(path, name="data"):
    return open_random_access_readers([path], [name], location="data.train")[0]


def spots(path):
    return [spot for spot, _ in seeker(path).iter_rows()]


def texts_at(path):
    """Read alone, last row first."""
    one = seeker(path)
    return [one.read_row(spot)[1]["text"] for spot in reversed(spots(path))][::-1]


def test_lines_of_json_with_blank_lines_and_letters_of_several_bytes(tmp_path):
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
    assert spots(path) == [
        RowPosition(0, 1),
        RowPosition(18, 3),
        RowPosition(39, 5),
        RowPosition(56, 6),
    ]
    assert texts_at(path) == ["a", "éé", "漢", "z"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_separated_text_with_quoted_line_breaks(tmp_path, mark):
    path = tmp_path / "rows.csv"
    content = mark + 'n,text\n1,"two\nlines, ""é"""\n\n2,"\r\n"\r\n3,plain\n'
    path.write_bytes(content.encode())
    before = 3 * len(mark)
    # The header has 7 bytes, the two lines of the first row 7 and 15, the empty one 1, the next 8.
    starts = [7, 7 + 7 + 15 + 1, 7 + 7 + 15 + 1 + 8]
    assert [spot.offset for spot in spots(path)] == [before + start for start in starts]
    assert [spot.number for spot in spots(path)] == [2, 5, 7]
    assert texts_at(path) == ['two\nlines, "é"', "\r\n", "plain"]
    assert path.read_bytes()[spots(path)[1].offset :].startswith(b'2,"\r\n"')


def test_rows_of_several_row_groups_and_of_mapped_batches(tmp_path):
    texts = [f"row {number}" for number in range(11)]
    table = pa.table({"text": texts})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=4)
    with pa.ipc.new_file(tmp_path / "rows.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=3)
    for name in ("rows.parquet", "rows.arrow"):
        assert spots(tmp_path / name) == [RowPosition(number, number + 1) for number in range(11)]
        assert texts_at(tmp_path / name) == texts
        assert seeker(tmp_path / name, "x").read_row(RowPosition(9, 10))[0] == "x: row 10"
    version = seeking.FileVersion.from_path(tmp_path / "rows.parquet")
    assert seeking._locate_parquet_batch(version, 8)[1] == 0  # the third group's first
    assert seeking._locate_parquet_batch(version, 7)[1] == 3


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_file_that_is_no_longer_what_it_was_is_a_fault(tmp_path, name):
    """Even if it has become another one of the same size."""

    def write(text):
        if name == "rows.jsonl":
            (tmp_path / name).write_text(json.dumps({"text": text}) + "\n")
        else:
            parquet.write_table(pa.table({"text": [text]}), tmp_path / name)

    write("a")
    one, (spot,) = seeker(tmp_path / name), spots(tmp_path / name)
    assert one.read_row(spot)[1] == {"text": "a"}
    write("b")
    assert isinstance(one.read_row(spot), FileFault) and "has changed" in one.read_row(spot).problem
    assert seeker(tmp_path / name).read_row(spot)[1] == {"text": "b"}
    (tmp_path / name).unlink()
    assert "cannot be read (No such file" in one.read_row(spot).problem


def test_what_cannot_be_read_singly_is_refused(tmp_path, monkeypatch):
    (tmp_path / "rows.json").write_text('[{"text": "a"}]')
    with pytest.raises(DtlError, match=r"data.train.streaming: data is one JSON list.*an object a"):
        seeker(tmp_path / "rows.json")
    (tmp_path / "lines.json").write_text('{"text": "a"}\n')
    assert texts_at(tmp_path / "lines.json") == ["a"]
    parquet.write_table(pa.table({"text": ["a" * 50, "b" * 50]}), tmp_path / "rows.parquet")
    monkeypatch.setattr(seeking, "LARGEST_GROUP", 20)
    with pytest.raises(DtlError, match=r"row group of .* and 2 rows, .*; write it again in row gr"):
        seeker(tmp_path / "rows.parquet")


def test_an_index_holds_good_rows_of_all_files_within_the_limit(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"text": "a0"}\nbad\n{"text": "a1"}\n')
    (tmp_path / "data" / "b.jsonl").write_text('\n{"text": "b0"}\n{"text": "b1"}\n')
    rows = open_rows(Source(path="data", limit=3), {}, skip_invalid=True)
    seekers = rows.open_readers("data.train")
    index = open_row_index(rows, seekers, key="k", writes=True)
    assert (index.offsets.tolist(), index.numbers.tolist()) == ([0, 19, 1], [1, 3, 2])
    assert index.reading == rows.scan() and index.reading.faults[0].location == "data/a.jsonl:2"
    found = [
        rows.validate_row(n, seekers[file].read_row(spot))
        for n in range(3)
        for file, spot in [index.spot(n)]
    ]
    assert found == list(rows)
    again = open_row_index(rows, (), key="k", writes=False)  # nothing is read
    assert again.offsets.tolist() == [0, 19, 1]


def test_a_damaged_line_is_named_when_the_index_is_made(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"te\n')
    rows = open_rows(Source(path="rows.jsonl"), {})
    with pytest.raises(DtlError, match=r"rows\.jsonl:3: no valid JSON"):
        open_row_index(rows, rows.open_readers("data.train"), key="k", writes=True)
    assert list((tmp_path / "cache" / "indexed").iterdir()) == []


def test_making_an_index_holds_no_rows(tmp_path):
    """Ten times the rows, and hardly more memory."""
    import tracemalloc

    def most(count):
        line = json.dumps({"text": "word " * 200}) + "\n"
        (tmp_path / f"{count}.jsonl").write_text(line * count)
        rows = open_rows(Source(path=f"{count}.jsonl"), {})
        seekers = rows.open_readers("data.train")
        tracemalloc.start()
        try:
            open_row_index(rows, seekers, key=str(count), writes=True)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    most(100)
    few, many = most(400), most(4000)
    assert many < few + 300_000  # bytes; the rows are 4 MB, their numbers 64 KB
