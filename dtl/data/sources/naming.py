"""Lists of names for messages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

MAX_NAMES = 12


def list_names(folder: Path) -> list[str]:
    """Return the sorted names in a folder, without hidden files; empty if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def format_names(names: Iterable[str]) -> str:
    """Return "'a', 'b', 'c' ..."; "nothing" if there are no names."""
    quoted = [f"'{name}'" for name in names]
    if not quoted:
        return "nothing"
    return ", ".join(quoted[:MAX_NAMES]) + (" ..." if len(quoted) > MAX_NAMES else "")
