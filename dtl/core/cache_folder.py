"""The cache folder: files that dtl can generate again."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtl.core.errors import DtlError
from dtl.core.files import read_record, write_record


def cache_folder() -> Path:
    """Return the cache folder: $DTL_CACHE, else ~/.cache/dtl."""
    configured = os.environ.get("DTL_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "dtl"


def write_cache_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a small JSON object with its hash, and its folder; several processes may write the
    same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, record)


def read_cache_record(path: Path) -> dict[str, Any] | None:
    """Return what `write_cache_record` has written; None where there is nothing, or a damaged file,
    which is named and removed."""
    if not path.exists():
        return None
    try:
        return read_record(path)
    except DtlError as fault:
        print(f"{path} is made again: {fault.faults[0].problem}", file=sys.stderr, flush=True)
        path.unlink(missing_ok=True)
        return None
