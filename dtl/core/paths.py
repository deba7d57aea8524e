"""Say why a path cannot be used: a part that is too long, a link that leads nowhere, a file where a
folder should be."""

from __future__ import annotations

import os
from pathlib import Path

from dtl.core.errors import shorten_message

MAX_PART_BYTES = 255  # of every usual file system


def find_long_part(path: str) -> str | None:
    """Return the problem of a path with a name that no file system accepts; None: there is none."""
    for part in path.split("/"):
        if (size := len(os.fsencode(part))) > MAX_PART_BYTES:
            shown = shorten_message(part, characters=40)
            return (
                f"the name '{shown}' has {size} bytes, and a file system accepts {MAX_PART_BYTES}"
            )
    return None


def find_obstacle(path: Path) -> str | None:
    """Return why nothing can be at a path or below it; None: something is there, or could be."""
    problem = find_long_part(str(path))
    if problem is not None:
        return problem
    for each in (*reversed(path.parents), path):
        if each.is_symlink() and not _exists(each):
            return f"{each} is a link to {os.readlink(each)}, which does not exist"
        if each != path and _exists(each) and not each.is_dir():
            return f"{each} is a file, not a folder"
    return None


def find_folder_obstacle(folder: Path) -> str | None:
    """Return why a folder cannot be created or written into; None where it can."""
    problem = find_obstacle(folder)
    if problem is not None:
        return problem
    nearest = next((each for each in (folder, *folder.parents) if _exists(each)), Path("."))
    if not nearest.is_dir():
        return f"{nearest} is a file, not a folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} cannot be written to"
    return None


def _exists(path: Path) -> bool:
    """Return whether there is a file or folder; a link that leads to itself is none."""
    try:
        return path.exists()
    except OSError:
        return False
