"""SHA-256 digests of data files."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

from dtl.core.cache_folder import cache_folder, read_cache_record, write_cache_record

STAT_FIELDS = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
MIN_FILE_AGE_SECONDS = 2.0  # a younger file may change again without a new time stamp


def digest_files(paths: Iterable[Path], *, use_cache: bool = False) -> str:
    """Return the SHA-256 over the digests of these files, in order.

    `use_cache`: take the digest of a file whose size and times have not changed from the cache.
    """
    digest_file = _cached_digest_file if use_cache else _digest_file
    return hashlib.sha256(b"".join(digest_file(path) for path in paths)).hexdigest()


def _digest_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _cached_digest_file(path: Path) -> bytes:
    # Every process needs the digest at every start, and streamed files are large.
    before = path.stat()
    version = [str(path.resolve()), *(getattr(before, name) for name in STAT_FIELDS)]
    name = hashlib.sha256(json.dumps(version).encode()).hexdigest()
    cached = cache_folder() / "digests" / f"{name}.json"
    if (record := read_cache_record(cached)) is not None:
        return bytes.fromhex(record["digest"])
    digest = _digest_file(path)
    age_seconds = time.time() - max(before.st_mtime, before.st_ctime)
    if age_seconds > MIN_FILE_AGE_SECONDS and path.stat() == before:
        write_cache_record(cached, {"digest": digest.hex()})
    return digest
