"""Names as messages list them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

NAMES_LISTED = 12


def names_in(folder: Path) -> list[str]:
    """What a folder holds, hidden files aside; nothing where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def listed(names: Iterable[str]) -> str:
    """'a', 'b', 'c' ...; "nothing" for no names."""
    quoted = [f"'{name}'" for name in names]
    if not quoted:
        return "nothing"
    return ", ".join(quoted[:NAMES_LISTED]) + (" ..." if len(quoted) > NAMES_LISTED else "")
