"""Write files and folders atomically, and read them with verification.

A file or folder is written under a temporary name in the same folder and then renamed, so that a
reader never sees an incomplete one. After a kill, a temporary name may remain; it begins with a dot
or ends in `.staged`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dtl.core.errors import DtlError


@contextmanager
def open_atomic(path: Path, *, sync: bool, newline: str | None = None) -> Iterator[IO[str]]:
    """Open a UTF-8 text file for writing that gets its name when the block ends without an error.

    An existing file is replaced; of several writers, the last one wins. The parent folder must
    exist. `sync`: wait until the content and the name are on disk, so that they survive a crash of
    the machine.
    """
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with staged.open("w", encoding="utf-8", newline=newline) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    if sync:
        sync_to_disk(path.parent)


def write_text(path: Path, text: str, *, sync: bool) -> None:
    """Write a text file atomically (see open_atomic)."""
    with open_atomic(path, sync=sync) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically and wait until it is on disk."""
    with open_atomic(path, sync=True) as file:
        json.dump(value, file, indent=1)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Return the value in a JSON file of a run folder. Raises DtlError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise DtlError.of(
            str(path),
            f"the file cannot be read ({fault})",
            "restore the run folder from a copy, or start a new run",
        ) from fault


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `target` when the block ends without an error.

    If another process has created `target` meanwhile, its folder stays and this one is removed.
    """
    staged = target.with_name(f"{target.name}.{uuid.uuid4().hex}.staged")
    staged.mkdir(parents=True)
    try:
        yield staged
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    publish_folder(staged, target)


def publish_folder(
    staged: Path, target: Path, *, is_valid: Callable[[Path], bool] = Path.exists
) -> None:
    """Rename a complete folder to its final name.

    If `target` exists already and is valid, it stays and `staged` is removed. If it is not valid,
    it is replaced; processes that have its files open can continue to read.
    """
    try:
        staged.rename(target)
    except OSError:
        if is_valid(target):
            shutil.rmtree(staged)
            return
        if not target.exists():
            raise
        invalid = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        target.rename(invalid)
        staged.rename(target)
        shutil.rmtree(invalid, ignore_errors=True)


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until all files and folders below a folder, and the folder itself, are on disk."""
    for path in (*folder.rglob("*"), folder):
        sync_to_disk(path)


@dataclass(frozen=True)
class FileDigest:
    """The size of a file in bytes and its SHA-256."""

    bytes: int
    sha256: str


def hash_file(path: Path) -> FileDigest:
    """Return size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileDigest(path.stat().st_size, digest)


def verify_file(path: Path, expected: FileDigest) -> str | None:
    """Return why a file is not the expected one, or None. The size is compared first."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != expected.bytes:
        return f"{path.name} has the wrong size (expected {expected.bytes} bytes, got {size})"
    if hash_file(path) != expected:
        return f"{path.name} has the wrong SHA-256"
    return None
