"""Stage weights on the node's own disk: one process copies and verifies, then all read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dtl.config.schema import Model
from dtl.core.errors import DtlError, RankFailed
from dtl.core.files import publish_folder
from dtl.core.units import format_bytes
from dtl.models.fingerprint import find_hub_snapshot, fingerprint_model
from dtl.models.locate import locate_model
from dtl.models.trust import PICKLE_SUFFIXES

LOCATION = "model.staging_dir"
CHECKSUM_FILE = "staged.json"  # size and SHA-256 of each file, written last
CHUNK_BYTES = 16 * 2**20
COPY_THREADS = 8  # files at a time: a parallel file system gives one reader a part of its speed


def stage_weights(model: Model) -> None:
    """Copy the weights to `model.staging_dir`, unless they are there intact. One process per node.

    Raises RankFailed, which names the node, if the disk is too small or corrupts a file.
    """
    files, target = _list_files(model), _target_folder(model)
    if not is_intact(target):
        _copy_files(files, target, size=sum(file.stat().st_size for file in files))


def resolve_staged_model(model: Model) -> Model:
    """Return the config of the staged model, after `stage_weights`.

    Raises RankFailed if nothing is staged.
    """
    target = _target_folder(model)
    if not (target / CHECKSUM_FILE).is_file():
        raise _rank_failure(
            f"the first process of this node has not staged {target}",
            "use a folder that all processes of a node share",
        )
    return model.model_copy(update={"path": str(target), "revision": None, "staging_dir": None})


def is_intact(folder: Path) -> bool:
    """Return whether every file of a staged folder has the content that was copied."""
    try:
        checksums = json.loads((folder / CHECKSUM_FILE).read_text(encoding="utf-8"))
        return all(_checksum_file(folder / name) == value for name, value in checksums.items())
    except (OSError, ValueError):
        return False


def _source_folder(model: Model) -> Path:
    where = Path(locate_model(model))
    if where.is_dir():
        return where
    snapshot = find_hub_snapshot(str(where), model.revision)
    if snapshot is None:
        raise DtlError.of(
            LOCATION,
            f"{model.path} is not in the hub cache of this machine, so it cannot be staged",
            f"download it once where there is a network: hf download {model.path}",
        )
    return snapshot


def _list_files(model: Model) -> list[Path]:
    """Return the files that a library may read: no pickles, no hidden files."""
    return sorted(
        file
        for file in _source_folder(model).iterdir()
        if file.is_file() and file.suffix not in PICKLE_SUFFIXES and not file.name.startswith(".")
    )


def _target_folder(model: Model) -> Path:
    parent = os.path.expandvars(os.path.expanduser(str(model.staging_dir)))
    if "$" in parent:
        raise _rank_failure(
            f"{model.staging_dir} uses a variable that is not set", "use a folder of this node"
        )
    digest = hashlib.sha256(fingerprint_model(model).encode()).hexdigest()[:16]
    return Path(parent) / f"{_source_folder(model).name}-{digest}"


def _copy_files(files: list[Path], target: Path, *, size: int) -> None:
    """Copy to a temporary folder, verify, and rename: another run on this node may do the same."""
    private = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        private.mkdir(parents=True)
        free = shutil.disk_usage(private).free
        if free < size:
            raise _rank_failure(
                f"the weights take {format_bytes(size)}, and {target.parent} has "
                f"{format_bytes(free)} left",
                "use another disk, or remove model.staging_dir",
            )
        with ThreadPoolExecutor(COPY_THREADS) as pool:
            copies = [private / file.name for file in files]
            expected = list(pool.map(_copy_file, files, copies))
            actual = list(pool.map(_checksum_file, copies))
        for copy, before, after in zip(copies, expected, actual, strict=True):
            if before != after:
                raise _rank_failure(
                    f"the copy of {copy.name} differs from its source", "use another disk"
                )
        checksums = {copy.name: value for copy, value in zip(copies, actual, strict=True)}
        (private / CHECKSUM_FILE).write_text(json.dumps(checksums), encoding="utf-8")
        publish_folder(private, target, is_valid=is_intact)
    except OSError as fault:
        raise _rank_failure(str(fault), "use another disk, or remove model.staging_dir") from fault
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _copy_file(source: Path, copy: Path) -> list[int | str]:
    """Copy a file; return the size in bytes and the SHA-256 of what was read."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, copy.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
        return [writer.tell(), digest.hexdigest()]


def _checksum_file(file: Path) -> list[int | str]:
    """Return the size of a file in bytes and its SHA-256."""
    with file.open("rb") as reader:
        return [file.stat().st_size, hashlib.file_digest(reader, "sha256").hexdigest()]


def _rank_failure(problem: str, fix: str) -> RankFailed:
    return RankFailed.of(f"{LOCATION} on {socket.gethostname()}", problem, fix)
