"""CSV files whose cells no spreadsheet takes for formulas."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtl.core.files import open_atomic

_FORMULA_STARTS = tuple("=+-@\t\r")


def write_csv(path: Path, header: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Write a table atomically; the parent folder must exist. None is an empty cell."""
    with open_atomic(path, sync=False, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(map(quote_formula, header))
        writer.writerows(map(quote_formula, row) for row in rows)


def write_csv_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as a table with a column for each key that some row has, in the order in which
    they occur. Lists and mappings are written as JSON."""
    every = list(rows)
    names = list(dict.fromkeys(name for row in every for name in row))
    write_csv(path, names, ([_to_cell(row.get(name)) for name in names] for row in every))


def quote_formula(cell: object) -> object:
    """Return a cell that a spreadsheet does not take for a formula and run."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell


def _to_cell(value: object) -> object:
    is_plain = value is None or isinstance(value, str | int | float)
    return value if is_plain else json.dumps(value, ensure_ascii=False, default=str)
