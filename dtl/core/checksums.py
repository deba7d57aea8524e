"""Checksums of the files of a folder, by blocks, so that a large file is verified where it is read.

A folder that is written once has a file checksums.json: of every other file its size, and the
CRC-32 of each block. A reader compares names and sizes when it opens the folder, and the blocks of
a file before it uses them.
"""

from __future__ import annotations

import os
import shutil
import sys
import uuid
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, TypeVar

from dtl.core.errors import DtlError, RankFailed
from dtl.core.files import read_record, sync_tree, write_record

CHECKSUMS = "checksums.json"
BLOCK_BYTES = 2**18
DIGITS = 8  # of a CRC-32 in hexadecimal
REMADE = "start the command again: it removes this folder of the cache, and makes it again"

T = TypeVar("T")


class DamagedFolder(RankFailed):
    """A file of a folder is not what was written. `folder`: that it belongs to."""

    folder: Path

    @classmethod
    def at(cls, folder: Path, problem: str, fix: str) -> Self:
        """Return the error of a folder."""
        error = cls.of(str(folder), f"the folder is damaged: {problem}", fix)
        error.folder = folder
        return error


@dataclass(frozen=True)
class FileChecksums:
    """The size of a file in bytes, and the CRC-32 of each of its blocks, concatenated."""

    bytes: int
    crc32: str

    def of_block(self, block: int) -> str:
        """Return the CRC-32 of a block."""
        return self.crc32[block * DIGITS : (block + 1) * DIGITS]


class ChecksummedFile:
    """Writes a file from its start to its end, and computes its checksums meanwhile. `syncs`: waits
    at the end until it is on disk; `seal_folder` does that for the files of its own process."""

    def __init__(self, path: Path, *, syncs: bool = False) -> None:
        self._file, self._syncs = path.open("xb"), syncs
        self._checksum, self._bytes, self._blocks = 0, 0, list[str]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.flush()
            if self._syncs:
                os.fsync(self._file.fileno())

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._file.write(data)
        rest = memoryview(data)
        while rest:
            part = rest[: BLOCK_BYTES - self._bytes % BLOCK_BYTES]
            self._checksum = zlib.crc32(part, self._checksum)
            self._bytes += len(part)
            if self._bytes % BLOCK_BYTES == 0:
                self._blocks.append(f"{self._checksum:08x}")
                self._checksum = 0
            rest = rest[len(part) :]

    @property
    def checksums(self) -> FileChecksums:
        """The checksums of what has been written."""
        last = [f"{self._checksum:08x}"] if self._bytes % BLOCK_BYTES else []
        return FileChecksums(self._bytes, "".join([*self._blocks, *last]))


def compute_checksums(path: Path) -> FileChecksums:
    """Return the checksums of a file."""
    size, blocks = 0, []
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            size += len(block)
            blocks.append(f"{zlib.crc32(block):08x}")
    return FileChecksums(size, "".join(blocks))


def seal_folder(
    folder: Path,
    written: Mapping[str, FileChecksums] | None = None,
    *,
    unchecked: Collection[str] = (),
) -> None:
    """Write checksums.json, and wait until the folder is on disk.

    `written`: checksums that are known already, by file name; the others are read from the disk.
    `unchecked`: files that may change later.
    """
    known = dict(written or {})
    files = {name: known.get(name) or compute_checksums(folder / name) for name in _list(folder)}
    left_out = {CHECKSUMS, *unchecked}
    retained = {name: asdict(each) for name, each in files.items() if name not in left_out}
    write_record(folder / CHECKSUMS, {"block_bytes": BLOCK_BYTES, "files": retained})
    sync_tree(folder)


class CheckedFolder:
    """A folder with checksums, opened for reading.

    `fix`: what a message advises. `is_cache`: a damaged folder is removed, so that it is made
    again. Raises DamagedFolder where a file is missing or has another size; which other files the
    folder holds does not matter.
    """

    def __init__(self, path: Path, *, fix: str, is_cache: bool = False) -> None:
        self.path, self.fix, self.is_cache = path, fix, is_cache
        if not path.is_dir():
            raise FileNotFoundError(path)
        self._version = _read_version(path / CHECKSUMS)
        try:
            stored = read_record(path / CHECKSUMS)
            self._files = {name: FileChecksums(**each) for name, each in stored["files"].items()}
            if stored["block_bytes"] != BLOCK_BYTES:
                raise ValueError(f"blocks of {stored['block_bytes']} bytes")
        except (DtlError, KeyError, TypeError, ValueError, AttributeError) as fault:
            reason = fault.faults[0].problem if isinstance(fault, DtlError) else str(fault)
            raise self.damage(f"{CHECKSUMS}: {reason}") from fault
        for name, expected in self._files.items():
            self._check_size(name, expected)

    def damage(self, problem: str) -> DamagedFolder:
        """Return the error for a problem with this folder; remove the folder of a cache."""
        try:
            if self.is_cache:
                self._remove()
        except OSError as fault:
            return DamagedFolder.at(self.path, problem, f"remove it: {fault}")
        return DamagedFolder.at(self.path, problem, self.fix)

    def has_file(self, name: str) -> bool:
        """Return whether the folder was written with this file."""
        return name in self._files

    def checksums(self, name: str) -> FileChecksums:
        """Return the checksums of a file. Raises DamagedFolder where it has none."""
        if name not in self._files:
            raise self.damage(f"{name} has no checksum")
        return self._files[name]

    def verify_file(self, name: str) -> Path:
        """Return the path of a file after all of its blocks were compared. Raises DamagedFolder."""
        expected = self.checksums(name)
        if (actual := compute_checksums(self.path / name)) != expected:
            blocks = range(-(-expected.bytes // BLOCK_BYTES))
            wrong = next(n for n in blocks if actual.of_block(n) != expected.of_block(n))
            raise self.wrong_block(name, wrong)
        return self.path / name

    def verify_all(self) -> None:
        """Compare all files. Raises DamagedFolder."""
        for name in self._files:
            self.verify_file(name)

    def wrong_block(self, name: str, block: int) -> DamagedFolder:
        """Return the error for a block that is not what was written."""
        start = block * BLOCK_BYTES
        end = min(start + BLOCK_BYTES, self._files[name].bytes)
        return self.damage(f"bytes {start} to {end} of {name} do not have their CRC-32")

    def _remove(self) -> None:
        """Remove the folder, unless another process has replaced it since it was opened."""
        if _read_version(self.path / CHECKSUMS) == self._version:
            remove_folder(self.path)

    def _check_size(self, name: str, expected: FileChecksums) -> None:
        file = self.path / name
        if not file.is_file() or Path(name).is_absolute() or ".." in Path(name).parts:
            raise self.damage(f"{name} is missing")
        if (size := file.stat().st_size) != expected.bytes:
            raise self.damage(f"{name} has {size} bytes (expected {expected.bytes})")


def open_cache_folder(path: Path) -> CheckedFolder:
    """Open a folder of the cache. Raises DamagedFolder, as do all who read a file of it, and
    removes a damaged folder."""
    return CheckedFolder(path, fix=REMADE, is_cache=True)


class BlockVerifier:
    """Compares the blocks of a memory-mapped file, each before it is used for the first time."""

    def __init__(self, folder: CheckedFolder, name: str, content: memoryview) -> None:
        """`content`: of the file, as bytes."""
        self._folder, self._name, self._content = folder, name, content
        self._expected = folder.checksums(name)
        self._is_verified = bytearray(-(-len(content) // BLOCK_BYTES))

    def verify(self, start: int, end: int) -> None:
        """Compare the blocks that contain these bytes. Raises DamagedFolder."""
        for block in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
            if self._is_verified[block]:
                continue
            part = self._content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            if f"{zlib.crc32(part):08x}" != self._expected.of_block(block):
                raise self._folder.wrong_block(self._name, block)
            self._is_verified[block] = 1


def open_intact(folder: Path, opens: Callable[[Path], T]) -> T | None:
    """Return an opened folder of the cache; None where there is none, or a damaged one, which is
    named and removed. Raises DamagedFolder where it cannot be removed."""
    try:
        return opens(folder)
    except FileNotFoundError:
        return None
    except DamagedFolder as damage:
        if folder.exists():
            raise
        print(f"{folder} is made again: {damage.faults[0].problem}", file=sys.stderr, flush=True)
        return None


def verify_if_sealed(folder: Path, *, fix: str) -> None:
    """Compare all files of a folder with its checksums; nothing where it has none, because another
    program has written it. Raises DamagedFolder."""
    if (folder / CHECKSUMS).exists():
        CheckedFolder(folder, fix=fix).verify_all()


def remove_folder(folder: Path) -> None:
    """Remove a folder under another name, so that no process finds a part of it."""
    removed = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        folder.rename(removed)
    except FileNotFoundError:  # another process removes it
        return
    shutil.rmtree(removed, ignore_errors=True)


def _read_version(file: Path) -> tuple[int, int] | None:
    """Return what differs between two files that were written under one name."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _list(folder: Path) -> list[str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file.relative_to(folder).as_posix() for file in files)
