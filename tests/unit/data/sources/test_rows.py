"""Rows: columns, fingerprints, limits and invalid rows."""

import hashlib
from pathlib import Path

import pytest

from dtl.config.schema import Source
from dtl.core.errors import DtlError
from dtl.data.sources.rows import open_rows
from tests.unit.data.sources.source_files import (
    ROWS,
    as_json_lines,
    fingerprint,
    get_error,
    read_fields,
)


def test_rows_can_be_read_again():
    as_json_lines(Path("a.jsonl"), ROWS)
    rows = open_rows(Source(path="a.jsonl"), {})
    assert next(iter(rows)).fields == ROWS[0]
    assert list(rows) == list(rows)


def test_columns_can_be_swapped_and_one_can_serve_twice():
    Path("a.jsonl").write_text('{"a": 1, "b": 2, "c": 3}\n')
    assert read_fields("a.jsonl", {"a": "b", "b": "a"}) == [{"c": 3, "a": 2, "b": 1}]
    assert read_fields("a.jsonl", {"x": "a", "y": "a"}) == [{"b": 2, "c": 3, "x": 1, "y": 1}]


def test_missing_columns_are_all_listed():
    as_json_lines(Path("a.jsonl"), ROWS)
    assert str(get_error("a.jsonl", {"text": "txet", "label": "kind"})).splitlines() == [
        "data.columns.text: a.jsonl has no column 'txet'. Fix: did you mean 'text'?",
        "data.columns.label: a.jsonl has no column 'kind'. "
        "Fix: use one of its columns: 'text', 'label'",
    ]


def test_column_missing_in_a_later_row_has_its_location():
    Path("a.jsonl").write_text('{"body": "x"}\n{"text": "y"}\n')
    assert str(get_error("a.jsonl", {"text": "body"})).startswith("a.jsonl:2: the column 'body'")


def test_fingerprint_changes_with_everything_that_changes_the_rows():
    as_json_lines(Path("a.jsonl"), ROWS)
    first = fingerprint("a.jsonl")
    assert first == fingerprint("a.jsonl")
    assert len({first, fingerprint("a.jsonl", limit=2), fingerprint("a.jsonl", {"t": "text"})}) == 3
    as_json_lines(Path("b.jsonl"), ROWS)
    assert fingerprint("b.jsonl") == first  # the name is no part of it
    as_json_lines(Path("b.jsonl"), [*ROWS[:-1], {"text": "!", "label": "positive"}])
    assert fingerprint("b.jsonl") != first


def test_fingerprint_of_a_folder_covers_each_file():
    Path("one").mkdir()
    as_json_lines(Path("one/a.jsonl"), ROWS[:2])
    as_json_lines(Path("one/b.jsonl"), ROWS[2:])
    before = fingerprint("one")
    as_json_lines(Path("one/b.jsonl"), ROWS[3:])
    assert fingerprint("one") != before
    assert len(before) == len(hashlib.sha256().hexdigest())


def test_five_invalid_rows_are_listed_at_once():
    Path("a.jsonl").write_text('{"text": "x"}\n' + "bad\n" * 100 + '{"text": "y"}\n')
    assert [fault.location for fault in get_error("a.jsonl").faults] == [
        f"a.jsonl:{line}" for line in (2, 3, 4, 5, 6)
    ]


def test_rows_beyond_the_limit_are_not_validated():
    Path("a.jsonl").write_text('{"text": "x"}\nbad\n')
    assert read_fields("a.jsonl", limit=1) == [{"text": "x"}]


def test_invalid_first_row_is_found_on_opening():
    Path("a.jsonl").write_text("bad\n")
    with pytest.raises(DtlError, match=r"a\.jsonl:1"):
        open_rows(Source(path="a.jsonl"), {})
