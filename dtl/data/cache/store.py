"""Cache folders: their keys, memory-mapped arrays, and waiting for another process."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dtl.core.errors import RunFailed

if TYPE_CHECKING:
    pass
FORMAT_VERSION = 6


def cache_key(**parts: Any) -> str:
    """Return a name for cached data that changes whenever anything it depends on changes."""
    text = json.dumps({"format": FORMAT_VERSION, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def memory_map(file: Path, dtype: str) -> np.ndarray:
    """Return the array in a file as a memory map, shape (N,)."""
    if file.stat().st_size == 0:  # cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.asarray(np.memmap(file, dtype=dtype, mode="r"))


def wait_for_file(file: Path, *, timeout_seconds: float = 3600.0) -> None:
    """Wait until another process has written a file, the last one of its folder. Raises RunFailed
    after the timeout."""
    start = time.monotonic()
    while not file.exists():
        if time.monotonic() - start > timeout_seconds:
            raise RunFailed.of(
                str(file.parent),
                f"no encoded data after {timeout_seconds:.0f} s",
                "see the log of rank 0",
            )
        time.sleep(0.1)
