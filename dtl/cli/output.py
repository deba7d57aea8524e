"""Print tables and JSON to the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dtl.core.tables import format_table, terminal_width


def print_table(rows: Sequence[Sequence[str]], *, indent: str = "") -> None:
    """Print rows of text in aligned columns, as wide as the terminal."""
    for line in format_table(rows, width=terminal_width(sys.stdout), indent=indent):
        print(line)


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    import json

    print(json.dumps(value, indent=2))
