"""The cache folder: files that dtl can generate again."""

import os
from pathlib import Path

from dtl.core.files import write_text


def cache_folder() -> Path:
    """Return the cache folder: $DTL_CACHE, else ~/.cache/dtl."""
    configured = os.environ.get("DTL_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "dtl"


def write_cache_file(path: Path, text: str) -> None:
    """Write a small file atomically, and its folder; several processes may write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text, sync=False)
