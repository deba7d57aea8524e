"""Tables of text, as wide as the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import IO

MIN_LAST_COLUMN = 30  # characters; with less, the last column goes to lines of its own
GAP = "  "


def terminal_width(stream: IO[str]) -> int | None:
    """Return the columns of the terminal that a stream writes to; None: a file or pipe."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def format_table(
    rows: Sequence[Sequence[str]], *, width: int | None = None, indent: str = ""
) -> list[str]:
    """Return rows as lines of aligned columns.

    `width`: of the terminal. The last column is wrapped at words; where it has little room, it
    begins on a line of its own. None: each row is one line.
    """
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    before = len(indent) + sum(widths[:-1]) + len(GAP) * (len(widths) - 1)
    lines: list[str] = []
    for row in rows:
        cells = [cell.ljust(size) for cell, size in zip(row, widths, strict=True)]
        line = f"{indent}{GAP.join(cells)}".rstrip()
        if width is None or len(line) <= width:
            lines.append(line)
        elif width - before >= MIN_LAST_COLUMN:
            start = f"{indent}{GAP.join(cells[:-1])}{GAP}"
            lines += _wrap(row[-1], width, first=start, rest=" " * before)
        else:
            own = f"{indent}    "
            lines += _wrap(GAP.join(row[:-1]), width, first=indent, rest=own)
            lines += _wrap(row[-1], width, first=own, rest=own)
    return lines


def _wrap(text: str, width: int, *, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )
