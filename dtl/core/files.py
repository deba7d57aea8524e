"""Write files and folders atomically, and read them with verification.

A file or folder is written under a temporary name in the same folder and then renamed, so that a
reader never sees an incomplete one. After a kill, a temporary name may remain; it begins with a dot
or ends in `.staged`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dtl.core.errors import DtlError

ABANDONED_SECONDS = 6 * 3600.0  # without a change; then a staged folder has no writer
# A name that a file or folder has before it is complete, or while it is being removed.
_STAGED = re.compile(r"\.(lease-|.+\.)[0-9a-f]{32}(\.staged)?")
HASH = "sha256"  # key of a record: the hash of its other values


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
    except (OSError, ValueError, RecursionError) as fault:
        raise _unreadable(path, str(fault)) from fault


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with the SHA-256 of its content as its last value, and wait
    until it is on disk."""
    content = {key: value for key, value in record.items() if key != HASH}
    write_json(path, {**content, HASH: _hash_record(content)})


def read_record(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file that `write_record` has written.

    Raises DtlError if it cannot be read, or is not what was written.
    """
    record = read_json(path)
    expected = record.pop(HASH, None) if isinstance(record, dict) else None
    if expected is None or expected != _hash_record(record):
        reason = "does not have its SHA-256" if expected else "has no SHA-256"
        raise _unreadable(path, f"the content {reason}: it was damaged, or changed by hand")
    return dict(record)


def _hash_record(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _unreadable(path: Path, reason: str) -> DtlError:
    return DtlError.of(
        str(path),
        f"the file cannot be read ({reason})",
        "restore the run folder from a copy, or start a new run",
    )


@contextmanager
def staged_folder(
    target: Path, *, publish: Callable[[Path, Path], None] | None = None
) -> Iterator[Path]:
    """Yield an empty folder that gets the name `target` when the block ends without an error.
    `publish`: renames it; None: `publish_folder`.

    If another process has created `target` meanwhile, its folder stays and this one is removed.
    What kills have left beside it is removed after a time.
    """
    if target.parent.is_dir():
        remove_abandoned(target.parent)
    staged = target.with_name(f".{target.name}.{uuid.uuid4().hex}.staged")
    staged.mkdir(parents=True)
    try:
        yield staged
        (publish or publish_folder)(staged, target)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def remove_abandoned(folder: Path) -> None:
    """Remove staged files and folders, of all names, that no process writes any more."""
    staged = [path for path in folder.iterdir() if _STAGED.fullmatch(path.name)]
    for path in staged:
        try:
            changes = [each.stat().st_mtime for each in (path, *path.rglob("*"))]
        except OSError:  # its process has renamed or removed it
            continue
        if time.time() - max(changes) > ABANDONED_SECONDS:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def create_staging_folder(staged: Path) -> None:
    """Create an empty folder for the files of several processes; what a kill has left there is
    removed."""
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)


def publish_new_folder(staged: Path, target: Path) -> None:
    """Rename a complete folder to a name that is not used, and wait until the name is on disk.
    Raises DtlError if another process uses it by now."""
    try:
        staged.rename(target)
    except OSError as fault:
        if not target.exists():
            raise
        raise DtlError.of(
            str(target), "another process has created this folder meanwhile", "remove one of them"
        ) from fault
    sync_to_disk(target.parent)


def replace_folder(staged: Path, target: Path) -> None:
    """Rename a complete folder to its name; a folder that has the name is removed."""
    publish_folder(staged, target, is_valid=lambda _: False)
    sync_to_disk(target.parent)


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


def find_unused_path(path: Path) -> Path:
    """Return the path, with a number where the name is taken."""
    number, unused = 2, path
    while unused.exists():
        unused, number = path.with_name(f"{path.name}-{number}"), number + 1
    return unused


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
