"""Cache folders: their keys, verified memory-mapped arrays, and waiting for another process."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dtl.core.checksums import BlockVerifier, CheckedFolder, DamagedFolder
from dtl.core.errors import RunFailed

FORMAT_VERSION = 8

T = TypeVar("T")


def cache_key(**parts: Any) -> str:
    """Return a name for cached data that changes whenever anything it depends on changes."""
    text = json.dumps({"format": FORMAT_VERSION, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class CheckedArray:
    """A memory-mapped array, shape (N, *shape), whose blocks are verified when they are first
    read. Raises DamagedFolder."""

    def __init__(
        self, folder: CheckedFolder, name: str, dtype: str, *, shape: tuple[int, ...] = ()
    ) -> None:
        self._array = _map(folder.path / name, dtype, folder.checksums(name).bytes)
        self._verifier = BlockVerifier(folder, name, self._array.view("|u1").data)
        self._array = self._array.reshape(-1, *shape)
        self._row_bytes = int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._array)

    def read(self, start: int, end: int) -> np.ndarray:
        """Return the values from `start` up to `end`."""
        self._verifier.verify(start * self._row_bytes, end * self._row_bytes)
        return self._array[start:end]


def map_verified(folder: CheckedFolder, name: str, dtype: str) -> np.ndarray:
    """Return the array in a file as a memory map, shape (N,), after it was verified. Raises
    DamagedFolder."""
    return _map(folder.verify_file(name), dtype, folder.checksums(name).bytes)


def read_json_verified(folder: CheckedFolder, name: str) -> Any:
    """Return the content of a JSON file after it was verified. Raises DamagedFolder."""
    return json.loads(folder.verify_file(name).read_text(encoding="utf-8"))


def _map(file: Path, dtype: str, size: int) -> np.ndarray:
    if size == 0:  # cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.asarray(np.memmap(file, dtype=dtype, mode="r"))


def wait_for_folder(
    folder: Path, opens: Callable[[Path], T], *, timeout_seconds: float = 3600.0
) -> T:
    """Wait until another process has written a folder, and return it opened. A damaged one is
    replaced by that process. Raises RunFailed after the timeout."""
    start = time.monotonic()
    while True:
        wait_for_file(folder, timeout_seconds=timeout_seconds - (time.monotonic() - start))
        try:
            return opens(folder)
        except (DamagedFolder, FileNotFoundError):
            if time.monotonic() - start > timeout_seconds:
                raise
        time.sleep(0.1)


def wait_for_file(file: Path, *, timeout_seconds: float = 3600.0) -> None:
    """Wait until another process has written a file or a folder. Raises RunFailed after the
    timeout."""
    start = time.monotonic()
    while not file.exists():
        if time.monotonic() - start > timeout_seconds:
            raise RunFailed.of(
                str(file.parent),
                f"no encoded data after {max(0.0, timeout_seconds):.0f} s",
                "see the log of rank 0",
            )
        time.sleep(0.1)
