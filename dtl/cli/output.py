"""Print tables and JSON to the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(rows: Sequence[Sequence[str]], *, indent: str = "") -> None:
    """Print rows of text in aligned columns."""
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"{indent}{'  '.join(cells)}".rstrip())


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    import json

    print(json.dumps(value, indent=2))
