"""Writers of data files, and short ways to read them."""

import csv
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from dtl.config.schema import Source
from dtl.core.errors import DtlError
from dtl.data.sources.rows import open_rows

ROWS = [
    {"text": 'He message "no",\nthen left.', "label": "negative"},
    {"text": "Größe: 北京 🙂", "label": "positive"},
    {"text": "plain", "label": "negative"},
    {"text": "", "label": "positive"},
]


def as_json_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def as_json(path, rows):
    path.write_text(json.dumps(rows, indent=1), "utf-8")


def as_delimited(delimiter):
    def write(path, rows):
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            table.writeheader()
            table.writerows(rows)

    return write


def as_parquet(path, rows):
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def as_arrow_file(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=3)


def as_arrow_stream(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=3)


WRITERS = {
    "data.jsonl": as_json_lines,
    "lines.json": as_json_lines,
    "data.json": as_json,
    "data.csv": as_delimited(","),
    "data.tsv": as_delimited("\t"),
    "data.parquet": as_parquet,
    "data.arrow": as_arrow_file,
    "stream.arrow": as_arrow_stream,
    "UPPER.JSONL": as_json_lines,
}


def read_rows(path, columns=None, **keys):
    return list(open_rows(Source(path=str(path), **keys), columns or {}))


def read_fields(path, columns=None, **keys):
    return [row.fields for row in read_rows(path, columns, **keys)]


def get_error(path, columns=None, **keys):
    with pytest.raises(DtlError) as caught:
        read_rows(path, columns, **keys)
    return caught.value


def fingerprint(path, columns=None, **keys):
    return open_rows(Source(path=path, **keys), columns or {}).fingerprint
